"""The files of a model's folder or hub id, looked at before a library reads them: plain, small enough, JSON, and asking for no code.

Transformers fetches and imports what some keys of config.json name, whatever `trust_remote_code` says: kernels for attention, libraries of
quantized weights; and an adapter's config makes it load another model. Nothing supported here needs them, so they are refused by name.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from eval.encoder.hub import CONFIG, model_folder
from eval.errors import SettingError, UserError
from eval.files import CONFIG_BYTES, MB, read_bytes, require_plain

_FILE_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, ImportError)
_FILE_ERRORS += (RuntimeError, StrictDataclassError)
"""What transformers raises on files whose values are of another type, number or size than it expects, by the value."""
_SETTINGS = (
    CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
"""Files that hold a JSON object, and are small."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_VOCABULARY_BYTES = 512 * MB
_ABSURD_ID = re.compile(rb'(?<!\\)":\s*(-?\d{9,})')  # libraries fill a table up to the largest id
_LARGEST_NUMBER, _MOST_LAYERS = 2**31 - 1, 1000
_ADAPTER = "adapter_config.json"
_CODE = ("auto_map", "custom_pipelines", "custom_generate", "remote_code")
_QUANTIZED = ("quantization_config", "compression_config")
_IMPLEMENTATIONS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_PLAIN_IMPLEMENTATIONS = (None, "eager", "sdpa")


def check_model_files(name: str, setting: str = "model") -> None:
    """Refuse a model whose files are none, hold something else than their names say, or ask for code, kernels or another model.

    Args:
        name: folder or hub id.
        setting: what it was given as.

    Raises:
        SettingError: naming the file and the key; or there is no such model (`eval.encoder.hub.model_folder`).
    """
    folder = model_folder(name, setting)

    def refusal(file: str, what: str) -> SettingError:
        return SettingError(setting, f"{name}: {file} {what}")

    if _path(folder, _ADAPTER) is not None:
        remedy = "merge it into its base (merge_and_unload) and save the whole"
        raise refusal(_ADAPTER, f"makes it a PEFT adapter, which names a base of its own; {remedy}")
    for file in _SETTINGS:
        if (path := _path(folder, file)) is None:
            continue
        try:
            content = json.loads(read_bytes(path, CONFIG_BYTES).decode("utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise refusal(file, f"could not be read as JSON ({error}). Fetch or copy the file again") from error
        if not isinstance(content, dict):
            what = f"could not be used: expected an object, found a {type(content).__name__}. Fetch or copy the file again"
            raise refusal(file, what)
        for key, value in _items(content):
            if fault := _fault(key, value):
                raise refusal(file, f"could not be used: {key} is {value!r:.100}: {fault}")
        if file == CONFIG and (absurd := [f"{key} {value}" for key, value in _items(content) if _is_absurd(key, value)]):
            raise refusal(file, f"could not be used: {absurd[0]:.100} is no size of a model. Fetch or copy the file again")
        if file == CONFIG and (methods := _methods(content)):
            raise refusal(file, f"could not be used: {methods[0]} is no setting. Take the key out")
    for file in _VOCABULARIES:
        if (path := _path(folder, file)) is not None:
            try:
                content = read_bytes(path, _VOCABULARY_BYTES) if file.endswith(".json") else b""
                require_plain(path, _VOCABULARY_BYTES)
            except OSError as error:
                raise refusal(file, f"could not be read ({error}). Fetch or copy the file again") from error
            if found := _ABSURD_ID.search(content):
                raise refusal(file, f"could not be used: {found[1].decode():.40} is no id of a token. Fetch or copy it again")


@contextmanager
def using_files(fault: str, setting: str = "model") -> Iterator[None]:
    """Make what libraries raise over a model's files an error that names the model; an accelerator out of memory is none of it.

    Args:
        fault: what could not be done with which model; what was raised is added.
        setting: what the model was given as.

    Raises:
        SettingError: in place of another error.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not isinstance(error, _FILE_ERRORS) and type(error) is not Exception:  # the Rust library `tokenizers` raises the latter
            raise
        raise SettingError(setting, f"{fault}: {in_words(error)}. Fetch or copy its files again") from error


def in_words(error: Exception) -> str:
    """An error with its class, as the text of a KeyError or a ZeroDivisionError alone says little."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _path(folder: Path, file: str) -> Path | None:
    """Where a file of a model lies; None: there is none."""
    path = folder / file
    return path if os.path.lexists(path) else None


def _items(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, of an object and of what it holds."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield key, value
            yield from _items(value)
    elif isinstance(content, list):
        for value in content:
            yield from _items(value)


def _fault(key: str, value: Any) -> str:
    """What is wrong with a key; empty: nothing."""
    if key in _CODE and value:
        return "code of the model's own, which is never run. Take a checkpoint that needs none"
    if key in _QUANTIZED and value:
        return "quantized weights, which are not read. Take the checkpoint in float32, bfloat16 or float16"
    if key == "transformers_weights" and value:
        return "another file of weights. Name the weights model.safetensors"
    if _IMPLEMENTATIONS.fullmatch(key):
        values = value.values() if isinstance(value, Mapping) else (value,)
        if any(one not in _PLAIN_IMPLEMENTATIONS for one in values if not isinstance(one, list | dict)):
            return "a kernel that would be fetched or imported. Take the key out, or write eager or sdpa"
    return ""


def _is_absurd(key: str, value: Any) -> bool:
    """Whether a number is no size, or would only be noticed when memory or years are used up."""
    if type(value) is not int:
        return False
    is_size = key.endswith(("_size", "_heads", "_layers", "_channels"))
    return abs(value) > _LARGEST_NUMBER or (is_size and value < 0) or ("layers" in key and value > _MOST_LAYERS)


def _methods(config: Mapping[str, Any]) -> list[str]:
    """Keys of a config, and of the configs in it, that would take the place of a method."""
    found = [key for key in config if callable(getattr(PretrainedConfig, key, None))]
    parts = [value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)]
    return found + [key for part in parts for key in _methods(part)]

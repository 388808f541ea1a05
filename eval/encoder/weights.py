"""Load the weights of a folder or hub id: its safetensors, or a safetensors copy of its pytorch_model.bin, made once.

The copy is in the hub's cache for assets (HF_ASSETS_CACHE), under the SHA-256 of the pickled weights: equal weights share one copy, and
changed weights get another.
"""

import hashlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from transformers import GenerationConfig

from eval.atomic import commit_folder, folder_aside, hash_file
from eval.encoder.hub import PICKLED_INDEX, PICKLED_WHOLE, SAFE_INDEX, SAFE_WHOLE, fetch_weights, model_folder
from eval.encoder.pickled import pickled_bytes, read_index, write_as_safetensors
from eval.errors import UserError, WriteError
from eval.files import cache_folder


def load_weights(model_class: Any, name: str, config: Any, setting: str = "model", **options: Any) -> tuple[Any, dict[str, Any]]:
    """(model in float32, transformers' loading info with missing_keys and mismatched_keys); options go to its from_pretrained.

    Args:
        name: folder or hub id.
        setting: what it was given as.

    Raises:
        UserError: the hub's weights cannot be fetched, a pytorch_model.bin holds anything but tensors, the copy of it is damaged, or an
            index leads outside the folder.
        WriteError: the copy cannot be written.
        OSError, SafetensorError, RuntimeError, ValueError, TypeError: from transformers, by the fault in the files.
    """
    options |= {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    fetch_weights(name, setting)
    folder = model_folder(name, setting)
    pickled = _pickled_weights(folder)
    if pickled is None:
        check_shards(folder)
        model, loading = model_class.from_pretrained(str(folder), config=config, trust_remote_code=False, **options)
        model.name_or_path = model.config.name_or_path = name
        return model, loading
    copy = _safetensors_copy(name, pickled)
    options["generation_config"] = _generation_config(folder)  # the copy holds the weights alone
    try:
        model, loading = model_class.from_pretrained(str(copy), config=config, trust_remote_code=False, **options)
    except SafetensorError as error:
        raise UserError(
            f"{name}: the safetensors copy of its {pickled.name} in {copy} is damaged ({error}); remove that folder, and it is made again"
        ) from error
    model.name_or_path = model.config.name_or_path = name
    return model, loading


def _pickled_weights(folder: Path) -> Path | None:
    """pytorch_model.bin, or the index of its shards, where there are no safetensors; None where there are, or there is neither."""
    safe, pickled = (
        next((path for name in names if (path := folder / name).is_file()), None)
        for names in ((SAFE_WHOLE, SAFE_INDEX), (PICKLED_WHOLE, PICKLED_INDEX))
    )
    return pickled if safe is None else None


def check_shards(folder: Path) -> None:
    """Refuse an index of safetensors that names, or by links reaches, a file outside its folder.

    Raises:
        UserError: naming it; or the index cannot be read.
    """
    if (folder / SAFE_INDEX).is_file() and not (folder / SAFE_WHOLE).is_file():
        read_index(folder / SAFE_INDEX)


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity, in their order; one sum over each shows it."""
    return [name for name, tensor in tensors if not tensor.sum().isfinite() and not tensor.isfinite().all()]


def _safetensors_copy(name: str, weights: Path) -> Path:
    """A folder with the safetensors of a pytorch_model.bin or of an index's shards; made by one process at a time, whole or not at all."""
    root = cache_folder("safetensors")
    copy = root / _content_name(name, weights)
    if _is_whole(copy):
        return copy
    try:
        root.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(root / f".{copy.name}.lock"):
            if not _is_whole(copy):
                _write_copy(weights, copy)
                print(f"no safetensors in {name}: {weights.name} was read with weights_only=True into {copy}", file=sys.stderr, flush=True)
    except OSError as error:
        raise WriteError(
            f"{name}: could not write the safetensors copy of its {weights.name} to {copy} ({error}). Make room there, or set "
            "HF_ASSETS_CACHE to another folder"
        ) from error
    return copy


def _is_whole(copy: Path) -> bool:
    return (copy / SAFE_WHOLE).is_file() or (copy / SAFE_INDEX).is_file()


def _write_copy(weights: Path, copy: Path) -> None:
    """Write the copy; a process that a lock cannot hold back (another machine's, perhaps) may have been faster."""
    with folder_aside(copy, pickled_bytes(weights.parent)) as temporary:
        write_as_safetensors(weights, temporary)
        try:
            commit_folder(temporary, copy, replaces=False)
        except OSError:
            if not _is_whole(copy):
                raise


def _content_name(name: str, weights: Path) -> str:
    """SHA-256 (hex) of the weights: of the file's bytes, or of the index's and every shard's."""
    try:
        if weights.name != PICKLED_INDEX:
            return _sha256(weights)
        shards = {}
        for shard in sorted(set(read_index(weights).values())):
            path = weights.with_name(shard)
            if not path.is_file():
                raise UserError(f"{name}: {weights.name} names {shard}, which is not there. Fetch or copy it again")
            shards[shard] = _sha256(path)
        return hashlib.sha256(f"{_sha256(weights)} {sorted(shards.items())}".encode()).hexdigest()
    except OSError as error:
        raise UserError(f"{name}: {weights.name} could not be read: {error}") from error


def _sha256(path: Path) -> str:
    """Of a file's bytes, hex; the hub's cache names large files by this hash, so they need not be read."""
    stored = path.resolve()
    if stored.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", stored.name):
        return stored.name
    return hash_file(path)


def _generation_config(folder: Path) -> GenerationConfig:
    """As from_pretrained would find it in the folder itself."""
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:
        return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)

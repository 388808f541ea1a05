"""What a model is next to its weights: the values of its config, image processor and tokenizer that are in force.

Values, not the bytes of files: a folder that is copied, or written again by another version of transformers, is the same model.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval.encoder.hub import revision_in_use, without_revision
from eval.errors import UserError

Identity = dict[str, dict[str, Any]]
"""Part of a model -> its values by name, as JSON keeps them; "library": the version of transformers that read them, "hub": its commit."""
_PARTS = {"config": "config", "image_processor": "image processor", "tokenizer": "tokenizer"}
_WITHOUT_EFFECT = {"_name_or_path", "name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_WITHOUT_EFFECT |= {"processor_class", "image_processor_type", "feature_extractor_type"}  # names of classes: ours are given
_MOST_NAMED = 3


def identity_of(config: Any, image_processor: Any, tokenizer: Any, name: str = "") -> Identity:
    """The identity of a model as transformers has loaded it; computed right after that, before training changes anything.

    Args:
        config, image_processor, tokenizer: of transformers.
        name: folder or hub id; of one of the hub the commit in use is recorded.
    """
    parts = {"config": config.to_dict(), "image_processor": image_processor.to_dict(), "tokenizer": tokenizer_values(tokenizer)}
    values: Identity = {part: _values(json.loads(json.dumps(record, default=str))) for part, record in parts.items()}
    hub = {"hub": {"commit": commit}} if (commit := revision_in_use(name)) is not None else {}
    return values | {"library": {"transformers": version("transformers")}} | hub


def differences(recorded: Identity, found: Identity) -> list[str]:
    """What differs, a sentence's part for each part of the model: "the image processor has other values (image_mean: ... -> ...)".

    Where another version of transformers recorded the values, only those that both know are compared.
    """
    is_same_library, lines = recorded.get("library") == found.get("library"), list[str]()
    for part, words in _PARTS.items():
        old, new = recorded.get(part, {}), found.get(part, {})
        keys = old.keys() | new.keys() if is_same_library else old.keys() & new.keys()
        changed = sorted(key for key in keys if old.get(key) != new.get(key))
        if changed:
            shown = "; ".join(f"{key}: {old.get(key)!s:.60} -> {new.get(key)!s:.60}" for key in changed[:_MOST_NAMED])
            more = f"; and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
            lines.append(f"the {words} has other values ({shown}{more})")
    return lines


def check_identity(model: str, begun: str, recorded: Identity | None, found: Identity | None) -> None:
    """Refuse a model that is not the one a run was begun with.

    Args:
        begun: the run's folder, for the message.
        recorded: by the run; None: by an earlier version, which recorded the weights alone.
        found: now.

    Raises:
        UserError: naming each part that differs, and how.
    """
    if recorded is None or found is None:
        return
    if lines := differences(recorded, found):
        raise UserError(
            f"{model} is another model than when {begun} was begun: {'; '.join(lines)}.{begun_with(model, recorded)} Bring its "
            "files back, or give the run another name="
        )


def begun_with(model: str, recorded: Identity | None) -> str:
    """What to do where a model of the hub has moved on since a run was begun with it; empty: it has not, or is none."""
    begun, now = (recorded or {}).get("hub", {}).get("commit"), revision_in_use(model)
    if begun is None or now is None or begun == now:
        return ""
    return f" It was commit {begun} of the hub, and is {now} now: name that one, {without_revision(model)}@{begun}."


def identity_sha256(identity: Identity | None) -> str:
    """Hash of an identity, hex, to compare those of several processes by."""
    parts = {part: values for part, values in (identity or {}).items() if part in _PARTS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_stamps(model: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """(size, time of the last change, ns) of every file of a model folder, by name; empty for a model of the hub, whose files stay.

    Raises:
        OSError: the folder cannot be read.
    """
    folder = Path(model)
    if not folder.is_dir():
        return {}
    found = {path.name: path.stat() for path in folder.iterdir() if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def _values(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level, "text_config.hidden_act", without those that change nothing."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if key in _WITHOUT_EFFECT:
            continue
        found |= _values(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def tokenizer_values(tokenizer: Any) -> dict[str, Any]:
    """Its words and rules by hash, and its special tokens; without the truncation and padding of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        words = json.dumps({key: value for key, value in content.items() if key not in ("truncation", "padding")}, sort_keys=True).encode()
    elif hasattr(tokenizer, "sp_model"):
        words = tokenizer.sp_model.serialized_model_proto()
    else:
        words = json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()
    return {
        "words_sha256": hashlib.sha256(words).hexdigest(),
        "added_tokens": {str(number): str(token) for number, token in tokenizer.added_tokens_decoder.items()},
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "do_lower_case": getattr(tokenizer, "do_lower_case", None),
    }

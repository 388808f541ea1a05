"""A hub folder that holds its weights only as pytorch_model.bin, made into one that holds safetensors."""

import os
import shutil
from pathlib import Path

from eval.encoder.hub import PICKLED_INDEX, PICKLED_WHOLE, SAFE_INDEX, SAFE_WHOLE
from eval.encoder.pickled import write_as_safetensors
from eval.errors import UserError
from eval.files import require_plain

OTHER_WEIGHTS = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.pkl", "*.pickle")
"""Weights in forms that are not read here: not copied, and not fetched but for pytorch_model*.bin."""


def convert_hub_folder(source: Path, target: Path) -> list[str]:
    """Writes `source` into the folder `target`: its weights as safetensors, shard by shard, and everything else as it is.

    Returns:
        What was written and left out, a line each.

    Raises:
        UserError: there is nothing to convert, or the weights cannot be read or contradict their index.
        OSError, safetensors.SafetensorError: a file cannot be written.
    """
    if (source / SAFE_WHOLE).exists() or (source / SAFE_INDEX).exists():
        raise UserError(f"{source} holds its weights as safetensors already: give it to --rerank as it is")
    weights = next((source / name for name in (PICKLED_INDEX, PICKLED_WHOLE) if (source / name).is_file()), None)
    if weights is None:
        raise UserError(
            f"{source}: expected {PICKLED_WHOLE} or {PICKLED_INDEX}; found {sorted(path.name for path in source.iterdir())[:8]}"
        )
    num_tensors = write_as_safetensors(weights, target)
    left_out = _copy_rest(source, target)
    return [f"{num_tensors} tensors as safetensors"] + ([f"left out: {', '.join(left_out)}"] if left_out else [])


def _copy_rest(source: Path, target: Path) -> list[str]:
    """Copies everything but weights and hidden files; returns the names of what was left out."""
    left_out = []
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or any(path.match(pattern) for pattern in OTHER_WEIGHTS):
            left_out.append(path.name)
        elif not os.access(path, os.R_OK):
            raise UserError(f"{path}: cannot be read: a link to nothing, or no permission. Mend it or take it away")
        elif path.is_dir():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns(*OTHER_WEIGHTS))
        else:
            require_plain(path)
            shutil.copyfile(path, target / path.name)
    return left_out

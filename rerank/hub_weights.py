"""A hub folder that holds its weights only as pytorch_model.bin, made into one that holds safetensors."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eval.errors import UserError, reading
from rerank.pickled import read_pickled

_WHOLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SAFE_WHOLE, _SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
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
    if (source / _SAFE_WHOLE).exists() or (source / _SAFE_INDEX).exists():
        raise UserError(f"{source} holds its weights as safetensors already: give it to --rerank as it is")
    if (source / _INDEX).is_file():
        num_tensors = _convert_shards(source, target)
    elif (source / _WHOLE).is_file():
        tensors = _tensors(source / _WHOLE)
        save_file(_apart(tensors), target / _SAFE_WHOLE, metadata={"format": "pt"})
        num_tensors = len(tensors)
    else:
        raise UserError(f"{source}: expected {_WHOLE} or {_INDEX}; found {sorted(path.name for path in source.iterdir())[:8]}")
    left_out = _copy_rest(source, target)
    return [f"{num_tensors} tensors as safetensors"] + ([f"left out: {', '.join(left_out)}"] if left_out else [])


def _convert_shards(source: Path, target: Path) -> int:
    """One shard in memory at a time; returns the number of tensors."""
    index = _index(source / _INDEX)
    shards = sorted(set(index.values()))
    weight_map: dict[str, str] = {}
    total_size = 0
    for number, shard in enumerate(shards, start=1):
        tensors = _tensors(source / shard)
        expected = {name for name, place in index.items() if place == shard}
        if tensors.keys() != expected:
            raise UserError(
                f"{source / shard} holds other tensors than {_INDEX} says: lacking are {sorted(expected - tensors.keys())}, "
                f"and not listed {sorted(tensors.keys() - expected)}. Fetch the folder again"
            )
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(_apart(tensors), target / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total_size += sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (target / _SAFE_INDEX).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return len(weight_map)


def _index(path: Path) -> dict[str, str]:
    """Tensor name -> file name.

    Raises:
        UserError: it is not readable, or names a file outside the folder.
    """
    with reading():
        text = path.read_text(encoding="utf-8")
    try:
        index = json.loads(text)["weight_map"]
        places = {str(name): str(place) for name, place in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected an object with a weight_map ({type(error).__name__}: {error})") from error
    if strangers := sorted({place for place in places.values() if Path(place).name != place or not place.endswith(".bin")}):
        raise UserError(f"{path}: expected names of .bin files beside it; found {', '.join(strangers)}")
    return places


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    content: Any = read_pickled(path)
    if not isinstance(content, Mapping) or not content or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise UserError(f"{path}: expected tensors by name; found something else")
    return {str(name): tensor for name, tensor in content.items()}


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor in memory of its own, as safetensors wants them: tied ones are written twice."""
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _copy_rest(source: Path, target: Path) -> list[str]:
    """Copies everything but weights and hidden files; returns the names of what was left out.

    Raises:
        UserError: a file cannot be read.
    """
    left_out = []
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or any(path.match(pattern) for pattern in OTHER_WEIGHTS):
            left_out.append(path.name)
        elif not os.access(path, os.R_OK):
            raise UserError(f"{path}: cannot be read: a link to nothing, or no permission. Mend it or take it away")
        elif path.is_dir():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns(*OTHER_WEIGHTS))
        else:
            shutil.copyfile(path, target / path.name)
    return left_out

"""Read weights in torch's pickled format with weights_only, so that no code in them runs, and write them as safetensors."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.serialization import get_unsafe_globals_in_checkpoint

from eval.encoder.hub import PICKLED_INDEX, SAFE_INDEX, SAFE_WHOLE
from eval.errors import UserError, reading
from eval.files import CONFIG_BYTES, link_outside, read_text, require_plain


def read_pickled(path: Path) -> Any:
    """The content of a .pth, .pt or .bin: tensors, numbers, texts, and containers of them.

    Always read with `weights_only`: any other object in a pickle could run any command when it is opened. The tensors of a file in
    torch's current format stay on disk until they are used.

    Raises:
        UserError: the file holds other objects, which are named; or it is missing, damaged, or of another format.
    """
    try:
        require_plain(path)
        is_zip = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        objects = _objects(path, str(error), is_zip)
        if objects:
            raise UserError(
                f"{path} was not read: it holds {', '.join(objects)}, and expected were tensors, numbers and texts alone. Unpickling "
                "another object can run any command, so there is no switch for it. Ask the file's maker for the weights alone, or "
                'where you trust it load it in a sandbox and save those: torch.save({"model": content["model"]}, NEW_FILE)'
            ) from error
        raise UserError(f"{path} is no file of torch.save: {_first_line(error)}") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, AssertionError) as error:
        raise UserError(f"{path} could not be read: {_first_line(error)}. Fetch or copy the file again") from error


def pickled_bytes(source: Path) -> int:
    """Bytes of a file of pickled weights, or of those of a folder: about what they are as safetensors."""
    files = [source] if source.is_file() else source.glob("pytorch_model*.bin")
    return sum(file.stat().st_size for file in files)


def write_as_safetensors(weights: Path, target: Path) -> int:
    """Writes the tensors of pytorch_model.bin, or of the shards next to pytorch_model.bin.index.json, into the folder `target`.

    Returns:
        The number of tensors.

    Raises:
        UserError: the file holds anything but tensors by name, cannot be read, or contradicts its index.
        OSError, safetensors.SafetensorError: a file cannot be written.
    """
    if weights.name == PICKLED_INDEX:
        return _write_shards(weights, target)
    tensors = _tensors(weights)
    _save(weights, tensors, target / SAFE_WHOLE)
    return len(tensors)


def _write_shards(index_path: Path, target: Path) -> int:
    """One shard in memory at a time; returns the number of tensors."""
    index = read_index(index_path)
    shards = sorted(set(index.values()))
    weight_map: dict[str, str] = {}
    total_size = 0
    for number, shard in enumerate(shards, start=1):
        path = index_path.with_name(shard)
        tensors = _tensors(path)
        expected = {name for name, place in index.items() if place == shard}
        if tensors.keys() != expected:
            raise UserError(
                f"{path} holds other tensors than {PICKLED_INDEX} says: lacking are {sorted(expected - tensors.keys())}, "
                f"and not listed {sorted(tensors.keys() - expected)}. Fetch the folder again"
            )
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(path, tensors, target / name)
        weight_map |= dict.fromkeys(tensors, name)
        total_size += sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (target / SAFE_INDEX).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return len(weight_map)


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, of an index of weights in shards.

    Raises:
        UserError: it is not readable, or names anything but files next to it of its own kind: .bin, or .safetensors.
    """
    suffix = ".bin" if path.name == PICKLED_INDEX else ".safetensors"
    with reading():
        text = read_text(path, CONFIG_BYTES)
    try:
        index = json.loads(text)["weight_map"]
        places = {str(name): str(place) for name, place in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: expected an object with a weight_map ({type(error).__name__}: {error})") from error
    strangers = sorted({place for place in places.values() if Path(place).name != place or not place.endswith(suffix)})
    if strangers or not places:
        raise UserError(f"{path}: expected names of {suffix} files next to it; found {', '.join(strangers[:5]) or 'none'}")
    for place in set(places.values()):
        shard = path.with_name(place)
        if shard.exists() and (target := link_outside(shard, path.parent)):
            raise UserError(f"{path}: {place} is a link to {target}, outside the model's folder. Copy the file there")
    return places


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    content: Any = read_pickled(path)
    if not isinstance(content, Mapping) or not content or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise UserError(f"{path}: expected tensors by name; found something else")
    return {str(name): tensor for name, tensor in content.items()}


def _save(source: Path, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors, which requires that they share no memory: tied ones are written twice."""
    if odd := sorted(name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized):
        raise UserError(f"{source}: expected dense tensors alone; {', '.join(odd[:5])} are sparse or quantized")
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _objects(path: Path, message: str, is_zip: bool) -> list[str]:
    """Names of the objects in a pickle other than tensors, from its opcodes, or else from torch's message."""
    named = re.findall(r"(?:GLOBAL |Unsupported class |builtin )([\w.]+)", message)
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path)) or named if is_zip else named
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return named


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]

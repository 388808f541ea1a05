"""A checkpoint with its weights only as pytorch_model.bin, as a folder or in the hub's cache, for tests."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

REVISION = "0" * 40


def bin_folder(folder: Path, place: Path, shards: int = 0) -> Path:
    """The same checkpoint with its weights only as pytorch_model.bin, in one file or in shards."""
    place.mkdir(parents=True)
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (place / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    if not shards:
        torch.save(tensors, place / "pytorch_model.bin")
        return place
    names = sorted(tensors)
    weight_map = {name: f"pytorch_model-{number % shards + 1:05d}-of-{shards:05d}.bin" for number, name in enumerate(names)}
    for shard in set(weight_map.values()):
        torch.save({name: tensors[name] for name in names if weight_map[name] == shard}, place / shard)
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return place


def in_hub_cache(cache: Path, hub_id: str, folder: Path, shards: int = 0) -> Path:
    """The same in a cache with huggingface_hub's layout, without its links; returns the snapshot's folder."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    return bin_folder(folder, repository / "snapshots" / REVISION, shards)

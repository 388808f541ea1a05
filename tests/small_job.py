"""A job small enough to run many times: drawn images, some shared captions, some groups of images, a tiny base.

Used by the tests of train/, the faults and benchmarks/faults.py.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.manifest.manifest import read_manifest
from train.config.model import ScratchConfig
from train.model.random_init import write_scratch

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
SHAPES = ("circle", "square", "bar")
SIDES = ("left", "right", "top", "bottom")
PLACES = {"left": (8, 24), "right": (40, 24), "top": (24, 8), "bottom": (24, 40)}
SIZES = {"train": 40, "val": 14, "test": 14}
TINY = ScratchConfig(image_size=16, patch_size=8, width=32, num_layers=2, num_heads=2, vocab_size=96, num_tokens=12)


def draw(colour: str, shape: str, side: str, background: int) -> Image.Image:
    """One 64 x 64 picture."""
    picture = Image.new("RGB", (64, 64), (background, 128, 255 - background))
    x, y = PLACES[side]
    box = (x, y, x + 16, y + (16 if shape != "bar" else 6))
    pen = ImageDraw.Draw(picture)
    pen.ellipse(box, fill=colour) if shape == "circle" else pen.rectangle(box, fill=colour)
    return picture


def write_pictures(folder: Path, sizes: dict[str, int] = SIZES, seed: int = 0) -> Path:
    """Draw pictures and write folder/pairs.jsonl.

    Every fifth image shares a caption with others, and the first six of a split form two groups. The pictures of val and test resemble
    the first of train, so that a few steps are enough to do better on them.
    """
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for split, size in sizes.items():
        draws = np.random.default_rng(seed)
        for number in range(size):
            colour, shape, side = (str(draws.choice(words)) for words in (COLOURS, SHAPES, SIDES))
            name = f"pictures/{split}-{number:03d}.png"
            draw(colour, shape, side, (37 * number + len(split)) % 256).save(folder / name)
            captions = [f"a {colour} {shape} at the {side}", f"The {shape}, {colour}, number {number}!"]
            if number % 5 == 0:
                captions.append(f"one {colour} thing")
            if number % 7 == 0:
                captions.pop(0)
            row = {"image": name, "captions": captions, "split": split}
            if number < 6:
                row["group"] = f"{split}-{number // 3}"
            lines.append(json.dumps(row))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(manifest: Path, split: str | None = "train") -> RetrievalSet:
    """One split of a manifest."""
    return load_split(read_manifest(manifest), split)


def changed(record: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a record with other values; `train__max_steps=3` is train.max_steps."""
    record = copy.deepcopy(record)
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = record
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return record


@dataclass(frozen=True)
class SmallWorld:
    """Pictures and a base that tests share and do not change."""

    manifest: Path
    base: Path

    @classmethod
    def make(cls, folder: Path) -> "SmallWorld":
        """Draw the pictures and write the base."""
        manifest = write_pictures(folder / "data")
        write_scratch(folder / "base", TINY, load(manifest), seed=1)
        (folder / "base" / "processor_config.json").unlink()  # released checkpoints have preprocessor_config.json alone
        return cls(manifest, folder / "base")

    def record(self, runs_folder: Path, **changes: Any) -> dict[str, Any]:
        """A configuration as its YAML file would hold it; changes are `train__max_steps=3` for train.max_steps."""
        record: dict[str, Any] = {
            "name": "job",
            "seed": 3,
            "curves": False,  # half a second each, where a job takes little more
            "runs_folder": str(runs_folder),
            "model": {"base": str(self.base)},
            "data": {"source": str(self.manifest), "num_workers": 0},
            "train": {
                "max_steps": 9,
                "batch_size": 8,
                "learning_rate": 3e-3,
                "warmup_steps": 1,
                "eval_every_steps": 3,
                "checkpoint_every_steps": 2,
                "keep_checkpoints": 2,
            },
            "mining": {"mine_every_steps": 4, "negatives_per_image": 2, "weight": 0.5, "pool_top_k": 40},
        }
        return changed(record, changes)

    def write_config(self, folder: Path, **changes: Any) -> Path:
        """Write a configuration into a folder; its run goes to runs/job there."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "job.yaml"
        path.write_text(yaml.safe_dump(self.record(folder / "runs", **changes)), encoding="utf-8")
        return path

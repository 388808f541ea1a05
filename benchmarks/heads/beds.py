"""The beds: which data, what is trained on and measured, and the length of plain training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.heads.features import Split, Trunk, checkpoint, photographs, read_bed
from benchmarks.heads.forms import System
from benchmarks.heads.systems import SYSTEMS

NUM_VAL = 500
"""Images held out of train to choose on, where the data have no split for it."""


@dataclass(frozen=True)
class Bed:
    """One bed.

    Attributes:
        splits: our names -> FILE:SPLIT of its source; `val` may be missing.
        trunk: makes its features.
        steps, batch_size: of plain training; learning_rate: the best on val, for plain, as `tune` prints.
    """

    splits: dict[str, str]
    trunk: Callable[[], Trunk]
    columns: dict[str, str]
    steps: int
    batch_size: int
    learning_rate: float
    has_several_captions: bool = True
    gains_from_steps: bool = False

    def systems(self) -> dict[str, System]:
        """Those that are asked about on it: several captions need images that have several, and thrice the steps more to gain."""
        return {
            name: system
            for name, system in SYSTEMS.items()
            if (system.captions == 1 or self.has_several_captions) and (system.steps < 3 or self.gains_from_steps)
        }

    def read(self, cache: Path, source: Path) -> dict[str, Split]:
        """Its train, val and test; val is drawn from train, by group, where there is none."""
        found = read_bed(cache, source, self.splits, self.columns, self.trunk)
        if "val" not in found:
            train = found["train"]
            order = np.random.default_rng(0).permutation(len(train.images_IF))
            groups = set(train.group_I[order[:NUM_VAL]].tolist())
            held = np.array([group in groups for group in train.group_I.tolist()])
            found |= {"val": train.part(np.flatnonzero(held)), "train": train.part(np.flatnonzero(~held))}
        return found


BEDS = {
    "photographs": Bed({"train": "train.parquet:train", "test": "val.parquet:val"}, photographs, {}, 200, 256, 2e-3),
    "fashion": Bed({"train": "train.parquet:train", "test": "val.parquet:val"}, photographs, {}, 300, 256, 4e-3, False),
    "scenes": Bed(
        {name: f"scenes.parquet:{name}" for name in ("train", "val", "test")},
        partial(checkpoint, "demo/models/siglip-base"), {"group": "scene"}, 400, 256, 2e-3, gains_from_steps=True,
    ),
}  # fmt: skip

"""A tuning of a reranker small enough to run many times: the pictures and the SigLIP of tests/small_job.py, and a tiny BLIP."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.small_job import SmallWorld, changed
from tests.tiny_blip import write_tiny_blip


@dataclass(frozen=True)
class RerankerWorld(SmallWorld):
    """What tests share and do not change."""

    blip: Path

    @classmethod
    def of(cls, world: SmallWorld, folder: Path) -> "RerankerWorld":
        """Write the BLIP."""
        write_tiny_blip(folder / "blip")
        return cls(world.manifest, world.base, folder / "blip")

    def record(self, runs_folder: Path, **changes: Any) -> dict[str, Any]:
        """A configuration as its YAML file would hold it; changes as SmallWorld.record takes them."""
        record: dict[str, Any] = {
            "name": "job",
            "seed": 3,
            "curves": False,  # half a second each, where a job takes little more
            "runs_folder": str(runs_folder),
            "model": {"base": str(self.blip)},
            "miner": str(self.base),
            "data": {"source": str(self.manifest), "num_workers": 0},
            "negatives": {"captions_per_image": 2, "images_per_caption": 1, "drawn_from": 4, "pool_top_k": 30},
            "train": {
                "max_steps": 6,
                "batch_size": 8,
                "learning_rate": 1e-3,
                "warmup_steps": 1,
                "eval_every_steps": 3,
                "checkpoint_every_steps": 2,
                "keep_checkpoints": 2,
            },
            "evaluation": {"top_k": 6},
        }
        return changed(record, changes)

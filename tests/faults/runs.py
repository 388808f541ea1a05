"""What the fault tests compare: the job to be disturbed, and what a run left behind."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.nursery import Child, Nursery
from tests.small_job import SmallWorld


def lines(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's metrics.jsonl so far."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def steps_taken(folder: Path) -> int:
    """The last step that has a line."""
    return max((line["step"] for line in lines(folder) if line["event"] == "step"), default=0)


def said(folder: Path) -> list[str]:
    """Everything that must be equal as text: losses and other figures of steps, figures of evaluations, mining reports."""
    untimed = {"seconds", "images_per_second", "data_wait_share"}
    return [json.dumps({key: value for key, value in line.items() if key not in untimed}) for line in lines(folder)]


@dataclass(frozen=True)
class Run:
    """A job in a folder of its own, started again and again by the same command."""

    nursery: Nursery
    config: Path
    world_size: int = 1
    module: str = "train"

    @classmethod
    def make(cls, nursery: Nursery, world: SmallWorld, folder: Path, world_size: int = 1, **changes: Any) -> "Run":
        """Write the configuration; keys as SmallWorld.record takes them."""
        return cls(nursery, world.write_config(folder, **changes), world_size)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.config.parent / "runs" / "job"

    def start(self, **options: Any) -> list[Child]:
        """Start it; options as Nursery.start or, for several processes, start_ranks take them."""
        if self.world_size == 1:
            return [self.nursery.start(self.module, [str(self.config)], **options)]
        return self.nursery.start_ranks(self.module, [str(self.config)], self.world_size, **options)

    def finish(self, **options: Any) -> list[Child]:
        """Start it and see it end well."""
        children = self.start(**options)
        assert [child.wait() for child in children] == [0] * self.world_size, "".join(child.output() for child in children)
        return children


def figures(run: Run) -> dict[str, Any]:
    """A run's final report without what its stages cost."""
    report: dict[str, Any] = json.loads((run.folder / "eval" / "test" / "report.json").read_text())
    for section in (report, *report.get("watch", [])):
        for stage in section["stages"].values():
            stage.pop("cost")
    return report


def assert_same(found: Run, straight: Run) -> None:
    """Exact resume: every loss as text, every figure, and the exported weights byte for byte."""
    assert said(found.folder) == said(straight.folder)
    weights = [(run.folder / "export" / "model.safetensors").read_bytes() for run in (found, straight)]
    assert weights[0] == weights[1]
    assert figures(found) == figures(straight)
    litter = [path.name for path in found.folder.rglob(".*") if path.name != ".lock"]
    assert litter == [], litter

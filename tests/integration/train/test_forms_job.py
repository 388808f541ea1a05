"""Batches composed of what was mined: a killed run goes on with the very same batches, and two processes see them too."""

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.faults.runs import Run, lines, said
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld

CHANGES: dict[str, Any] = {
    "data__val_split": None, "data__test_split": None, "train__checkpoint_every_steps": 3, "train__max_steps": 8,
}  # fmt: skip
KEYS = {"images": ("num_seeds", "num_hard_images", "num_filled"), "neighbours": ("neighbours_per_image",)}


def make(nursery: Nursery, world: SmallWorld, folder: Path, form: str, world_size: int = 1, num_workers: int = 0) -> Run:
    mining = {"mine_every_steps": 4, "start_step": 1, "negatives_per_image": 2, "margin": -5.0, "pool_top_k": 40, "form": form}
    return Run.make(nursery, world, folder, world_size, mining=mining, data__num_workers=num_workers, **CHANGES)


def steps(run: Run) -> list[dict[str, Any]]:
    return [line for line in lines(run.folder) if line["event"] == "step"]


@pytest.mark.parametrize("form", KEYS)
def test_killed_resumed_and_on_two_processes(nursery: Nursery, small_world: SmallWorld, tmp_path: Path, form: str) -> None:
    straight, two = (make(nursery, small_world, tmp_path / name, form, size) for name, size in (("straight", 1), ("two", 2)))
    killed = make(nursery, small_world, tmp_path / "killed", form, num_workers=1)  # a worker composes for itself
    straight.finish()
    # Steps 2 to 5 are of the first table, and the newest checkpoint is that of step 3: step 4 comes from a table that was read back.
    (child,) = killed.start(trap=Trap("train.siglip.step:Stepper.train_step", 5))
    assert child.wait() == -signal.SIGKILL, child.output()
    killed.finish()
    assert said(killed.folder) == said(straight.folder)
    weights = [(run.folder / "export" / "model.safetensors").read_bytes() for run in (killed, straight)]
    assert weights[0] == weights[1]
    two.finish()

    composed = steps(straight)
    assert len(composed) == 8 and all(line["num_mined"] == 0 and line["loss_mined"] == 0 for line in composed)
    assert all(line["loss"] == line["loss_in_batch"] for line in composed)
    for line, other in zip(composed, steps(two), strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-5)
        assert {key: other.get(key) for key in KEYS[form]} == {key: line.get(key) for key in KEYS[form]}
    assert ("hard images per caption" if form == "images" else "in one batch") in (straight.folder / "export" / "README.md").read_text()
    reports = [line for line in lines(straight.folder) if line["event"] == "mining"]
    assert [report["step"] for report in reports] == [1, 5] and all(report["num_positives_mined"] == 0 for report in reports)
    for report in reports:
        table = pq.read_table(straight.folder / "negatives" / f"{report['name']}.parquet")
        assert len(table) == report["num_mined"] > 0
        assert table.column_names == ["image_id", "caption_id", "rank", "score", "margin", "label"]
    if form == "images":
        assert composed[0]["num_seeds"] == 8 and [line["num_seeds"] for line in composed[1:]] == [2] * 7
        assert all(line["num_hard_images"] > 0 for line in composed[1:])
        assert [line["epoch"] for line in composed] == [0] * 8  # 40 images: 8 anchors, then 2 a step
    else:
        assert any(line["neighbours_per_image"] > 0 for line in composed[1:])
        assert all(report["share_met"] > report["share_met_plain"] for report in reports)


def test_hard_images_are_mined_by_the_command(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    run = make(nursery, small_world, tmp_path, "images")
    child = nursery.start("train.mining", [str(run.config)])
    assert child.wait() == 0, child.output()
    (table,) = (run.folder / "negatives").glob("*.parquet")
    report = json.loads(table.with_suffix(".json").read_text())
    assert report["mined_for"] == "captions" and report["num_mined"] == len(pq.read_table(table)) > 0
    page = table.with_suffix(".html").read_text()
    assert f"negatives for {report['num_images']} captions" in page and page.count("<article") == 20

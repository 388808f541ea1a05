"""A run knows its data: a picture or a caption that changed since it began is named before the first step, and before old figures."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.runs import Run, said, steps_taken
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld, write_pictures

PICTURES = "pictures"


@pytest.fixture(scope="module")
def killed(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on data of its own with a retention set, one picture of which does not decode, killed in step 3."""
    folder = tmp_path_factory.mktemp("killed")
    manifest = write_pictures(folder / "data")
    (folder / "data" / PICTURES / "train-039.png").write_bytes(b"no picture")
    watch = [{"name": "old", "source": str(write_pictures(folder / "watched", {"test": 8}, seed=1)), "split": "test"}]
    run = Run.make(nursery, small_world, folder, data__source=str(manifest), watch=watch, train__max_steps=4)
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 3, settled=True))
    assert child.wait() == -9, child.output()
    return run


def moved(run: Run, folder: Path) -> Run:
    """A copy of run and data, in which the run's paths lead to the copied data: every time of a last change is new."""
    for name in ("data", "watched", "runs"):
        shutil.copytree(run.config.parent / name, folder / name, copy_function=shutil.copy)
    for path in (folder / "job.yaml", folder / "runs" / "job" / "config.yaml"):
        source = run.config if path.name == "job.yaml" else run.folder / "config.yaml"
        path.write_text(source.read_text().replace(str(run.config.parent), str(folder)))
    return replace(run, config=folder / "job.yaml")


@pytest.fixture
def copy(killed: Run, tmp_path: Path) -> Run:
    return moved(killed, tmp_path)


def swap_bytes(path: Path) -> None:
    """Another file of the same size."""
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)


def refused(run: Run, *words: str) -> None:
    steps, files = steps_taken(run.folder), {path: path.read_bytes() for path in run.folder.rglob("*.parquet")}
    (child,) = run.start()
    assert child.wait() == 2, child.output()
    assert all(word in child.output() for word in words) and "Traceback" not in child.output(), child.output()
    assert steps_taken(run.folder) == steps and {path: path.read_bytes() for path in run.folder.rglob("*.parquet")} == files


def test_twenty_pictures_replaced_by_others_of_the_same_size_are_noticed_and_five_named(copy: Run) -> None:
    for number in range(20):
        swap_bytes(copy.config.parent / "data" / PICTURES / f"train-{number:03d}.png")
    named = ", ".join(f"{PICTURES}/train-{number:03d}.png" for number in range(5))
    refused(copy, "holds other data than when", f"20 picture(s) of train have other bytes: {named}, ...\n")


def test_a_changed_caption_of_val_and_a_changed_picture_of_a_retention_set_are_noticed(copy: Run) -> None:
    manifest = copy.config.parent / "data" / "pairs.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    row = next(row for row in rows if row["image"].endswith("val-002.png"))
    row["captions"][-1] += " indeed"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    swap_bytes(copy.config.parent / "watched" / PICTURES / "test-003.png")
    refused(
        copy,
        "1 picture(s) of val have other captions or another group: pictures/val-002.png\n",
        "1 picture(s) of watch old have other bytes: pictures/test-003.png\n",
    )


def test_pictures_that_are_gone_or_new_are_noticed(copy: Run) -> None:
    manifest = copy.config.parent / "data" / "pairs.jsonl"
    lines = manifest.read_text().splitlines()
    gone = next(line for line in lines if "test-001" in line)
    manifest.write_text("\n".join([line for line in lines if line != gone] + [gone.replace("test-001.png", "test-001b.png")]) + "\n")
    pictures = copy.config.parent / "data" / PICTURES
    (pictures / "test-001.png").rename(pictures / "test-001b.png")
    refused(copy, "1 picture(s) of test are gone: pictures/test-001.png\n", "1 picture(s) of test are new: pictures/test-001b.png\n")


def test_a_mere_copy_or_touch_is_no_change_nor_is_a_picture_that_still_does_not_decode(killed: Run, copy: Run, tmp_path: Path) -> None:
    again = moved(killed, tmp_path / "again")
    for path in (again.config.parent / "data" / PICTURES).iterdir():
        os.utime(path, (1, 1))
    for run in (again, copy):
        run.finish()
    assert said(again.folder) == said(copy.folder)
    weights = [(run.folder / "export" / "model.safetensors").read_bytes() for run in (again, copy)]
    assert weights[0] == weights[1]


def test_a_finished_run_does_not_show_its_figures_for_other_captions_or_pictures(copy: Run) -> None:
    copy.finish()
    manifest = copy.config.parent / "data" / "pairs.jsonl"
    before = manifest.read_text()
    manifest.write_text(before.replace("number 3!", "number three!"))
    refused(copy, "is finished, and its figures", "are not of these data", "of test have other captions", "give the run another name=")
    manifest.write_text(before)
    swap_bytes(copy.config.parent / "data" / PICTURES / "test-004.png")
    refused(copy, "is finished, and its figures", "1 picture(s) of test have other bytes")
    swap_bytes(copy.config.parent / "data" / PICTURES / "test-004.png")
    assert "is finished:" in copy.finish()[0].output()


def test_a_damaged_record_of_the_data_is_no_record(copy: Run) -> None:
    (copy.folder / "data.parquet").write_bytes(b"PAR1")
    refused(copy, "data.parquet is damaged", "Restore it; or remove it")
    (copy.folder / "data.parquet").unlink()
    copy.finish()
    assert (copy.folder / "data.parquet").exists()


def test_embedded_pictures_are_known_too(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in small_world.manifest.read_text().splitlines()]
    pictures = [{"bytes": (small_world.manifest.parent / row["image"]).read_bytes(), "path": row["image"]} for row in rows]
    table = {"image": pictures, "captions": [row["captions"] for row in rows], "split": [row["split"] for row in rows]}
    source = tmp_path / "pairs.parquet"
    pq.write_table(pa.table(table), source)
    run = Run.make(nursery, small_world, tmp_path, data__source=str(source), mining=None, train__max_steps=4)
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 3, settled=True))
    assert child.wait() == -9, child.output()
    raw = bytearray(pictures[7]["bytes"])
    raw[-20] ^= 1
    pq.write_table(pa.table(table | {"image": [*pictures[:7], {"bytes": bytes(raw), "path": pictures[7]["path"]}, *pictures[8:]]}), source)
    refused(run, "1 picture(s) of train have other bytes: pictures/train-007.png\n")
    pq.write_table(pa.table(table), source)
    run.finish()


def test_two_processes_refuse_changed_data_together(copy: Run) -> None:
    swap_bytes(copy.config.parent / "data" / PICTURES / "train-005.png")
    children = copy.nursery.start_ranks("train", [str(copy.config)], 2)
    assert [child.wait() for child in children] == [2, 2]
    assert "1 picture(s) of train have other bytes: pictures/train-005.png" in children[0].output()
    assert not any("Traceback" in child.output() for child in children)


def test_a_finished_run_is_measured_again_where_its_qrels_have_changed(copy: Run, tmp_path: Path) -> None:
    qrels, report = tmp_path / "more.qrels", copy.folder / "eval" / "test" / "report.json"
    arguments = [str(copy.config), f"evaluation.qrels={qrels}"]
    added = []
    for text in ("test-001.png", "test-001.png", "test-002.png"):
        qrels.write_text(f"{PICTURES}/{text} 0 {PICTURES}/test-009.png#0 1\n")
        child = copy.nursery.start("train", arguments)
        assert child.wait() == 0, child.output()
        added.append(("is finished:" in child.output(), json.loads(report.read_text())["data"]["truth"]["qrels"]["sha256"]))
    assert [was_shown for was_shown, _ in added] == [False, True, False]
    assert added[0][1] == added[1][1] != added[2][1]

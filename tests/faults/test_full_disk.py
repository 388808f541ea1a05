"""A full disk, wherever it strikes: exit code 4, a message with the file and the bytes, nothing half written, and room is all it takes."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bin_checkpoints import bin_folder
from tests.faults.runs import Run, assert_same, steps_taken
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld


@dataclass(frozen=True)
class Inputs:
    """What the commands read, on a disk with room."""

    world: RerankerWorld
    run: Path
    report: Path
    folder: Path


@pytest.fixture(scope="module")
def inputs(reranker_world: RerankerWorld, straight: dict[int, Run], nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A finished run, its report, pickled weights, captions, a choice set and a benchmark to convert."""
    folder, world = tmp_path_factory.mktemp("inputs"), reranker_world
    bin_folder(world.base, folder / "bin")
    bin_folder(world.blip, folder / "bin-blip")
    (folder / "captions.txt").write_text("a red bar\na blue circle\n")
    row = {"image": "val-000.png", "caption": "a red bar", "false_captions": ["a blue bar"]}
    (folder / "choices.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "order.json").write_text(
        json.dumps({"0": {"filename": "val-000.png", "caption": "a red bar " * 500, "negative_caption": "bar a red"}})
    )
    SmallWorld(world.manifest, world.base).write_config(folder)
    return Inputs(world, straight[1].folder, straight[1].folder / "eval" / "test", folder)


PARTS = ["export", "soup", "wise", "eval", "compare", "choices", "answers", "answers.csv", "answers.jsonl", "scores"]
PARTS += ["convert", "convert_choices", "mining"]


def command(part: str, inputs: Inputs, disk: Path) -> tuple[str, list[str]]:
    """A command whose output is on the disk."""
    world, out, pictures = inputs.world, str(disk / "out"), inputs.world.manifest.parent / "pictures"
    measured = ["--model", str(world.base), "--data", str(world.manifest), "--split", "test", "--output", out]
    searched = ["--model", str(world.base), "--images", str(pictures), "--captions", str(inputs.folder / "captions.txt"), "--top-k", "3"]
    if part == "convert_choices" and not (disk / "pictures").exists():
        (disk / "pictures").mkdir()
        shutil.copy(pictures / "val-000.png", disk / "pictures")
    return {
        "export": ("train.export", [str(inputs.run), "--output", out]),
        "soup": ("train.soup", [str(inputs.run), str(world.base), "--output", out]),
        "wise": ("train.wise", [str(inputs.run), "--output", out, "--alphas", "0,1", "--keep", "0.5"]),
        "eval": ("eval", [*measured, "--trec"]),
        "compare": ("eval.compare", [str(inputs.report), str(inputs.report), "--output", out]),
        "choices": (
            "eval.choices",
            ["--model", str(world.base), "--data", str(inputs.folder / "choices.jsonl"), "--image-root", str(pictures), "--output", out],
        ),
        "answers": ("rerank", [*searched, "--output", f"{out}.parquet"]),
        "answers.csv": ("rerank", [*searched, "--output", f"{out}.csv"]),
        "answers.jsonl": ("rerank", [*searched, "--output", f"{out}.jsonl"]),
        "scores": ("rerank", [*searched, "--rerank", str(world.blip), "--output", f"{out}.parquet"]),
        "convert": ("rerank.convert", [str(inputs.folder / "bin-blip"), "--output", out]),
        "convert_choices": (
            "eval.convert_choices",
            ["--layout", "sugarcrepe", "--source", str(inputs.folder / "order.json"), "--images", str(disk / "pictures")]
            + ["--output", str(disk / "set.jsonl")],
        ),
        "mining": ("train.mining", [str(inputs.folder / "job.yaml"), f"runs_folder={disk}"]),
    }[part]


def fill(disk: Path, room: int) -> Path:
    """Leave so many bytes; returns the file that takes the rest."""
    filler, found = disk / "filler", os.statvfs(disk)
    filler.write_bytes(b"x" * max(0, found.f_bavail * found.f_frsize - room))
    return filler


def assert_said(output: str, code: int, disk: Path) -> None:
    """One line that names a file on the disk, and bytes; no traceback; nothing half written."""
    assert code == 4, output
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert re.search("could not (write|be written)", line) and str(disk) in line, line
    assert re.search("No space left on device|SQLITE_FULL", line) and re.search(r"[\d,]+ are free", line), line
    if ".parquet'" not in line:  # pyarrow removes what it has written
        assert re.search(r"[\d,]+ bytes (were|of it)", line), line
    assert [path for path in disk.rglob(".*") if path.name != ".lock"] == []


@pytest.mark.parametrize("part", PARTS)
def test_a_full_disk_ends_every_command_with_4_and_making_room_is_all_it_takes(
    part: str, inputs: Inputs, nursery: Nursery, small_disk: Path
) -> None:
    module, arguments = command(part, inputs, small_disk)
    room = {"compare": 8192, "convert_choices": 8192, "mining": 24576, "choices": 16384, "scores": 20480}.get(part, 61440)
    filler = fill(small_disk, room)
    child = nursery.start(module, arguments)
    code = child.wait()
    assert_said(child.output(), code, small_disk)
    filler.unlink()
    child = nursery.start(module, arguments)
    assert child.wait() == 0, child.output()


STRIKES = {
    "negatives": Trap("train.siglip.mining:write_negatives", 1, 19),
    "embeddings": Trap("train.mining.candidates:stream_captions", 1, 19),
    "frozen tower": Trap("train.model.frozen_tower:_write_rows", 1, 19),
    "export": Trap("train.siglip.export:write_plain", 1, 19),
    "report": Trap("rerank.evaluation:write_report", 1, 19),
}


def test_a_checkpoint_that_its_thread_cannot_write_ends_the_run_on_every_process(
    nursery: Nursery, small_world: SmallWorld, straight: dict[int, Run], small_disk: Path
) -> None:
    run = Run.make(nursery, small_world, small_disk / "job", world_size=2)
    children = run.start(traps={0: Trap("train.engine.checkpoint:save_file", 7, 19)})
    children[0].wait_until(children[0].stopped)
    filler = fill(small_disk, 8192)
    children[0].kill(18)
    assert [child.wait() for child in children] == [4, 4]
    assert_said("".join(child.output() for child in children), 4, small_disk)
    assert steps_taken(run.folder) < 9
    filler.unlink()
    run.finish()
    assert_same(run, straight[2])


@pytest.mark.parametrize("strike", STRIKES)
def test_a_disk_that_fills_up_during_a_run_ends_it_with_4_and_making_room_resumes(
    strike: str, nursery: Nursery, small_world: SmallWorld, small_disk: Path
) -> None:
    changes = {"model__freeze": ["image"]} if strike == "frozen tower" else {}
    run = Run.make(nursery, small_world, small_disk / "job", train__max_steps=5, train__random_crop_min_area=1, **changes)
    (child,) = run.start(trap=STRIKES[strike])
    child.wait_until(child.stopped)
    filler = fill(small_disk, 8192)
    child.kill(18)
    code = child.wait()
    assert_said(child.output(), code, small_disk)
    filler.unlink()
    run.finish()


def test_a_full_disk_for_the_safetensors_copy_of_a_bin_ends_with_4(
    nursery: Nursery, inputs: Inputs, small_disk: Path, tmp_path: Path
) -> None:
    filler = fill(small_disk, 61440)
    words = ["--model", str(inputs.folder / "bin"), "--data", str(inputs.world.manifest), "--split", "test"]
    words += ["--output", str(tmp_path / "out")]
    full = nursery.start("eval", words, env={"HF_ASSETS_CACHE": str(small_disk)})
    code = full.wait()
    for lock in small_disk.rglob(".*.lock"):  # of huggingface_hub, which leaves its locks
        lock.unlink()
    assert_said(full.output(), code, small_disk)
    filler.unlink()
    again = nursery.start("eval", words, env={"HF_ASSETS_CACHE": str(small_disk)})
    assert again.wait() == 0, again.output()

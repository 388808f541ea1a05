"""Damaged files, full disks and jobs in one another's way: named, never guessed around, and nothing whole is lost."""

import os
import shutil
from pathlib import Path

import pytest

from eval.encoder.sealed import verify
from tests.faults.runs import Run, assert_same, lines, steps_taken
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld, write_pictures
from train.engine.checkpoint import Checkpoints


@pytest.fixture
def killed(run: Run) -> tuple[Run, Checkpoints]:
    """A run killed in step 7: with the checkpoints of steps 4 and 6, and the best, of step 3."""
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 8, settled=True))
    assert child.wait() == -9
    checkpoints = Checkpoints(run.folder / "checkpoints")
    assert checkpoints.steps()[-2:] == [4, 6]
    return run, checkpoints


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_a_damaged_newest_checkpoint_is_passed_over(killed: tuple[Run, Checkpoints], straight: dict[int, Run]) -> None:
    run, checkpoints = killed
    flip(checkpoints.path(6) / "optimizer.safetensors")
    (child,) = run.finish()
    assert "step-6 is damaged and was skipped: optimizer.safetensors" in child.output()
    assert "resuming job at step 4" in child.output()
    assert_same(run, straight[1])


def test_after_the_fallback_the_whole_checkpoint_is_not_pruned(killed: tuple[Run, Checkpoints], straight: dict[int, Run]) -> None:
    """One checkpoint is kept; if the damaged one counted, the only whole one would be removed, and the next kill would end the run."""
    run, checkpoints = killed
    flip(checkpoints.path(6) / "weights.safetensors")
    arguments = [str(run.config), "train.keep_checkpoints=1"]
    child = run.nursery.start("train", arguments, trap=Trap("train.model.grad_cache:image_features", 1, settled=True))
    assert child.wait() == -9
    assert 4 in checkpoints.steps() and verify(checkpoints.path(4)) == ""
    assert run.nursery.start("train", arguments).wait() == 0
    assert_same(run, straight[1])


def test_a_resumed_run_outlives_the_checkpoint_its_negatives_came_from(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    """Resumed from step 4 with the table mined at 0; the checkpoint of 6 pushes that of 4 out, and that of 8 needs the table again."""
    changes = {"mining__mine_every_steps": 100, "train__keep_checkpoints": 1}
    straight, run = (Run.make(nursery, small_world, tmp_path / name, **changes) for name in ("straight", "disturbed"))
    straight.finish()
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 6, settled=True))
    assert child.wait() == -9
    for file in (run.folder / "negatives").iterdir():
        file.unlink()
    assert "resuming job at step 4" in run.finish()[0].output()
    assert_same(run, straight)


def test_without_a_readable_checkpoint_it_ends_with_3(killed: tuple[Run, Checkpoints]) -> None:
    run, checkpoints = killed
    for step in checkpoints.steps():
        flip(checkpoints.path(step) / "state.json")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    (child,) = run.start()
    assert child.wait() == 3
    assert "no readable checkpoint" in child.output() and "Move" in child.output() and "Traceback" not in child.output()
    assert all(path.read_bytes() == raw for path, raw in before.items() if path.name not in (".lock", "config.yaml", "log.txt"))


def test_metrics_that_lost_lines_are_told_of(killed: tuple[Run, Checkpoints]) -> None:
    run, _ = killed
    path = run.folder / "metrics.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    (child,) = run.finish()
    assert "metrics.jsonl lacks" in child.output()
    assert steps_taken(run.folder) == 9 and lines(run.folder)[0]["event"] == "start"


def test_a_torn_line_of_metrics_is_dropped(killed: tuple[Run, Checkpoints], straight: dict[int, Run]) -> None:
    run, _ = killed
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "step": 7, "lo')
    run.finish()
    assert_same(run, straight[1])


def test_data_that_changed_in_between_is_refused(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path / "data")
    run = Run.make(nursery, small_world, tmp_path, data__source=str(manifest))
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 3, settled=True))
    assert child.wait() == -9
    manifest.write_text(manifest.read_text().replace("number 3!", "number three!"))
    (child,) = run.start()
    assert child.wait() == 2 and "holds other data than when" in child.output()


def test_a_base_that_changed_in_between_is_refused(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_world.base, base)
    run = Run.make(nursery, small_world, tmp_path, model__base=str(base))
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 3, settled=True))
    assert child.wait() == -9
    flip(base / "model.safetensors")
    (child,) = run.start()
    assert child.wait() == 2 and "has other weights than when" in child.output()


def test_two_jobs_in_one_folder(run: Run, straight: dict[int, Run]) -> None:
    (first,) = run.start(trap=Trap("train.model.grad_cache:image_features", 3, signal=19))  # stopped, not ended: it holds the folder
    first.wait_until(first.stopped)
    assert steps_taken(run.folder) == 2
    (second,) = run.start()
    assert second.wait() == 2 and "is in use by another job" in second.output()
    first.kill(18)
    assert first.wait() == 0, first.output()
    assert_same(run, straight[1])


def test_a_killed_jobs_folder_is_free_at_once(run: Run) -> None:
    """Its workers live on for seconds; they must not hold the lock."""
    (first,) = run.start(trap=Trap("train.model.grad_cache:image_features", 3, settled=True))
    assert first.wait() == -9
    (second,) = run.start(trap=Trap("train.siglip.loop:Loop.run", 1))
    assert second.wait() == -9, second.output()


def test_a_full_disk_ends_with_4_and_making_room_resumes(
    nursery: Nursery, small_world: SmallWorld, small_disk: Path, straight: dict[int, Run]
) -> None:
    run = Run.make(nursery, small_world, small_disk / "job")
    filler = small_disk / "filler"
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 4, signal=19, settled=True))
    child.wait_until(child.stopped)  # not before: the checkpoint of step 3 is still being written
    assert steps_taken(run.folder) == 3
    room = os.statvfs(small_disk)
    filler.write_bytes(b"x" * (room.f_bavail * room.f_frsize - 200_000))  # less than one checkpoint needs
    child.kill(18)
    assert child.wait() == 4, child.output()
    assert "could not write" in child.output()
    checkpoints = Checkpoints(run.folder / "checkpoints")
    assert checkpoints.steps() and all(verify(checkpoints.path(step)) == "" for step in checkpoints.steps())
    assert [path.name for path in checkpoints.folder.iterdir() if not path.name.startswith("step-")] == []
    filler.unlink()
    run.finish()
    assert_same(run, straight[1])


def test_a_full_disk_of_the_main_process_ends_both_with_4(
    nursery: Nursery, small_world: SmallWorld, small_disk: Path, straight: dict[int, Run]
) -> None:
    run = Run.make(nursery, small_world, small_disk / "job", world_size=2)
    children = run.start(traps={0: Trap("train.model.grad_cache:image_features", 4, signal=19)})
    children[0].wait_until(children[0].stopped)
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (room.f_bavail * room.f_frsize - 200_000))
    children[0].kill(18)
    assert [child.wait() for child in children] == [4, 4], children[1].output()
    assert "No space left on device" in children[0].output() and "Traceback" not in children[0].output() + children[1].output()
    (small_disk / "filler").unlink()
    run.finish()
    assert_same(run, straight[2])


def test_a_folder_that_cannot_be_made_ends_with_4(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    config = small_world.write_config(tmp_path)
    (tmp_path / "runs").write_text("a file where the folder should be")
    child = nursery.start("train", [str(config)])
    assert child.wait() == 4 and "could not write" in child.output()


def test_a_foreign_file_in_the_export_is_refused_before_the_first_step(run: Run) -> None:
    (run.folder / "export").mkdir(parents=True)
    for name in (".DS_Store", "Thumbs.db", "thesis.docx"):
        (run.folder / "export" / name).touch()
    (child,) = run.start()
    assert child.wait() == 2 and "is no earlier export (it holds ['thesis.docx'])" in child.output()
    assert not (run.folder / "checkpoints").exists() and (run.folder / "export" / "thesis.docx").exists()
    (run.folder / "export" / "thesis.docx").unlink()
    (child,) = run.start(trap=Trap("train.siglip.loop:Loop.run", 1))
    assert child.wait() == -9, child.output()


def test_a_report_that_could_not_be_written_is_refused_before_the_first_step(run: Run) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "eval").write_text("a file where the folder should be")
    (child,) = run.start()
    assert child.wait() == 4 and f"could not write {run.folder / 'eval' / 'test' / 'report.json'}" in child.output()
    assert not (run.folder / "checkpoints").exists()


def test_a_damaged_line_of_metrics_is_told_on_resume_and_the_run_goes_on(run: Run) -> None:
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 5, settled=True))
    assert child.wait() == -9
    path = run.folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"', b"\xff", 1)
    path.write_bytes(b"\n".join(lines))
    output = run.finish()[0].output()
    assert "metrics.jsonl holds no JSON in line 3, unlike when the checkpoint was written; the run goes on" in output
    assert path.read_bytes().split(b"\n")[2] == lines[2]

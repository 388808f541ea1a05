"""Pictures that evaluations need are decoded before the first step of a new run, and all that fail are named together."""

import json
import shutil
from pathlib import Path

import pytest

from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from train.__main__ import run
from train.reranker.__main__ import run as run_reranker


@pytest.fixture
def broken(small_world: SmallWorld, tmp_path: Path) -> Path:
    """The manifest of a copy of the pictures: one of test is none, another ends early, and a choice set has a third, of train, twice."""
    folder = tmp_path / "data"
    shutil.copytree(small_world.manifest.parent, folder)
    (folder / "pictures/test-003.png").write_bytes(b"no picture")
    whole = (folder / "pictures/test-007.png").read_bytes()
    (folder / "pictures/test-007.png").write_bytes(whole[: len(whole) // 2])
    (folder / "pictures/train-009.png").write_bytes(b"no picture")
    boxes = [[0, 0, 20, 20], [30, 30, 20, 20]]
    rows = [{"image": "pictures/train-009.png", "box": box, "caption": "a bar", "false_captions": ["a dog"]} for box in boxes]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["data.num_workers=2"]])
def test_all_broken_pictures_of_evaluations_are_told_before_the_first_step(
    small_world: SmallWorld, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    choices = str(broken.parent / "choices.jsonl")
    path = small_world.write_config(tmp_path / "job", data__source=str(broken), mining=None, choices=[choices])
    assert run([str(path), *options]) == 2
    told = capsys.readouterr().err
    assert "3 of the 29 pictures that evaluations need do not decode:\n  [test] " in told  # 14 of val, 14 of test, one of the choice set
    assert all(told.count(f"{name}.png") == 1 for name in ("test-003", "test-007"))
    assert f"\n  [{choices}] pictures/train-009.png" in told and "data.skip_broken=true leaves" in told
    metrics = tmp_path / "job/runs/job/metrics.jsonl"
    assert not metrics.exists() or metrics.read_text() == ""


def test_what_is_left_out_is_no_fault_but_a_choice_sets_picture_is(
    small_world: SmallWorld, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"data__source": str(broken), "data__skip_broken": True, "mining": None, "train__max_steps": 2}
    path = small_world.write_config(tmp_path / "one", choices=[str(broken.parent / "choices.jsonl")], **changes)
    assert run([str(path)]) == 2
    told = capsys.readouterr().err
    assert "1 of the 1 pictures" in told and "Mend them, or take their rows out\n" in told
    assert run([str(small_world.write_config(tmp_path / "two", **changes))]) == 0


def test_a_run_that_goes_on_does_not_decode_them_again(small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_world.write_config(tmp_path, mining=None, train__max_steps=2)
    assert run([str(path)]) == 0
    assert "pictures  28 of evaluations, all decode" in capsys.readouterr().out
    (tmp_path / "runs/job/finished.json").unlink()
    assert run([str(path)]) == 0
    again = capsys.readouterr().out
    assert "resuming job at step 2" in again and "of evaluations" not in again


def test_a_rerankers_tuning_tells_them_too(reranker_world: RerankerWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(reranker_world.manifest.parent, tmp_path / "data")
    (tmp_path / "data/pictures/test-003.png").write_bytes(b"no picture")
    path = reranker_world.write_config(tmp_path / "job", data__source=str(tmp_path / "data" / reranker_world.manifest.name))
    assert run_reranker([str(path)]) == 2
    assert "1 of the 28 pictures that evaluations need do not decode:\n  [test] " in capsys.readouterr().err

"""A picture that does not decode is told once, however often it comes, and listed where that is asked."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.dataset.broken import Skipped
from eval.processes import Processes
from train.data.batches import Undecodable
from train.engine.broken_pictures import BrokenPictures

OF_VAL = Skipped("v.png", "v", "torn", "val")


def job(folder: Path, *, skip_broken: bool) -> Any:
    data = SimpleNamespace(skip_broken=skip_broken, train_split="train")
    train_set = SimpleNamespace(image_ids=["a", "b"], image_place=lambda image: f"{'ab'[image]}.png")
    splits = SimpleNamespace(skipped=[OF_VAL] if skip_broken else [], skipped_rows=[])
    return SimpleNamespace(config=SimpleNamespace(data=data), processes=Processes(), train_set=train_set, splits=splits, folder=folder)


def listed(folder: Path) -> list[tuple[str, str]]:
    return [(one["split"], one["image"]) for one in map(json.loads, (folder / "skipped.jsonl").read_text().splitlines())]


def test_each_picture_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = BrokenPictures(job(tmp_path, skip_broken=False))
    broken.begin(is_new=True)
    broken.tell(3, [Undecodable(0, "a.png: torn"), Undecodable(0, "a.png: torn")])
    broken.tell(4, [Undecodable(1, "b.png: torn"), Undecodable(0, "a.png: torn")])
    told = capsys.readouterr().out.splitlines()
    expected = [(3, "a.png: torn"), (4, "b.png: torn")]
    what = "warning: another image of the split takes its place"
    assert told == [f"{what}, in step {step} and wherever it comes: {message}" for step, message in expected]
    assert not (tmp_path / "skipped.jsonl").exists()


def test_where_it_is_asked_each_is_listed_once_and_a_run_that_goes_on_adds_to_the_list(tmp_path: Path) -> None:
    broken = BrokenPictures(job(tmp_path, skip_broken=True))
    broken.begin(is_new=True)
    broken.tell(3, [Undecodable(0, "a.png: torn")])
    assert listed(tmp_path) == [("val", "v"), ("train", "a")]
    broken = BrokenPictures(job(tmp_path, skip_broken=True))
    broken.begin(is_new=False)
    broken.tell(5, [Undecodable(0, "a.png: torn"), Undecodable(1, "b.png: torn")])
    assert listed(tmp_path) == [("val", "v"), ("train", "a"), ("train", "b")]
    BrokenPictures(job(tmp_path, skip_broken=True)).begin(is_new=True)
    assert listed(tmp_path) == [("val", "v")]

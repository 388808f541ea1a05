"""A study by its real command: runs, answer, page; the same command again runs nothing."""

import json
from pathlib import Path

from tests.nursery import Nursery
from tests.small_job import SmallWorld


def test_a_study_answers_and_does_not_run_twice(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    config = small_world.write_config(tmp_path, train__max_steps=4)
    words = [str(config), "--seeds", "1", "--at-once", "2", "--no-equal-compute"]
    words += ["--system", "plain=mining=null", "--system", "two=mining=null,train.captions_per_image=2"]
    words += ["--output", str(tmp_path / "study")]
    first = nursery.start("train.study", words)
    assert first.wait() == 0, first.output()
    again = nursery.start("train.study", words)
    assert again.wait() == 0, again.output()
    assert "2 of 2 runs are finished already" in again.output()
    said = first.output().splitlines()[-4:]
    assert said[0] == "mean R@1 of both directions on test (14 images), 1 seed(s):" and said[2].endswith(": no evidence")
    assert again.output().splitlines()[-4:] == said
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    report = json.loads((tmp_path / "study" / "runs" / "two-0" / "eval" / "test" / "report.json").read_text())
    recalls = [report["stages"]["tuned"][direction]["R@1"] for direction in ("image_to_text", "text_to_image")]
    assert record["systems"][1]["mean_R@1"] == sum(recalls) / 2

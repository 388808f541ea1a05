"""A study by its real command: runs, answer, page; the same command again runs nothing."""

import json
import subprocess
import sys
from pathlib import Path

from tests.nursery import ROOT
from tests.small_job import SmallWorld


def test_a_study_answers_and_does_not_run_twice(small_world: SmallWorld, tmp_path: Path) -> None:
    config = small_world.write_config(tmp_path, train__max_steps=4)
    command = [sys.executable, "-m", "train.study", str(config), "--seeds", "1", "--at-once", "2", "--no-equal-compute"]
    command += ["--system", "plain=mining=null", "--system", "two=mining=null,train.captions_per_image=2"]
    command += ["--output", str(tmp_path / "study")]
    first, again = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert "2 of 2 runs are finished already" in again.stdout
    said = first.stdout.splitlines()[-4:]
    assert said[0] == "mean R@1 of both directions on test (14 images), 1 seed(s):" and said[2].endswith(": no evidence")
    assert again.stdout.splitlines()[-4:] == said
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    report = json.loads((tmp_path / "study" / "runs" / "two-0" / "eval" / "test" / "report.json").read_text())
    recalls = [report["stages"]["tuned"][direction]["R@1"] for direction in ("image_to_text", "text_to_image")]
    assert record["systems"][1]["mean_R@1"] == sum(recalls) / 2

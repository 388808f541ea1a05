"""The list of runs: states, figures, and what is damaged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from train.launch.runs import HEADER, Listed, in_columns, listed, runs_of


def make_run(folder: Path, *, steps: tuple[int, ...] = (0, 40), val: tuple[float, ...] = (0.2, 0.4, 0.3), **files: Any) -> Path:
    for step in steps:
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (folder / "config.yaml").write_text("train: {max_steps: 100}\n")
    lines = [{"event": "step", "step": 1, "loss": 2.0}] + [{"event": "eval", "step": 1, "mean_R@1": value} for value in val]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_line_of_each(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    finished = make_run(tmp_path / "study" / "runs" / "b", finished={})
    (finished / "eval" / "test").mkdir(parents=True)
    row = {"stage": "tuned", "against": "base", "metric": "R@1", "delta": 0.125, "verdict": "better"}
    figures = {way: {"R@1": value} for way, value in (("image_to_text", 0.5), ("text_to_image", 0.4))}
    record = {"comparisons": [row | {"direction": way} for way in ("image_to_text", "both")], "stages": {"tuned": figures}}
    (finished / "eval" / "test" / "report.json").write_text(json.dumps(record))
    (tmp_path / "no-run").mkdir()
    found = [listed(run, tmp_path) for run in runs_of(tmp_path)]
    assert found == [
        Listed("a", "stopped at step 40 of 100", "40.0"),
        Listed("study/runs/b", "finished", "40.0", "45.0", "+12.5 better"),
    ]
    assert list(in_columns([HEADER, *found])) == [
        "run           state                      val R@1  test R@1  gain",
        "a             stopped at step 40 of 100  40.0     -         -",
        "study/runs/b  finished                   40.0     45.0      +12.5 better",
    ]


def test_a_run_that_is_locked_by_another_process_is_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", val=())
    (run / ".lock").touch()
    hold = f"import fcntl; lock = open({str(run / '.lock')!r}, 'r+'); fcntl.lockf(lock, fcntl.LOCK_EX); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        assert listed(run, tmp_path) == Listed("a", "running, step 40 of 100")
        holder.communicate(b"\n")
    assert listed(run, tmp_path).state == "stopped at step 40 of 100"


@pytest.mark.parametrize("damaged", ["config.yaml", "metrics.jsonl", "eval/test/report.json"])
def test_what_cannot_be_read_is_left_out(tmp_path: Path, damaged: str) -> None:
    run = make_run(tmp_path / "a", finished={})
    (run / damaged).parent.mkdir(parents=True, exist_ok=True)
    (run / damaged).write_bytes(b"\xff{[")
    assert listed(run, tmp_path).state == "finished"


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        runs_of(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        runs_of(tmp_path / "nowhere")

"""The picture of a run: what is in it, that equal lines give equal files, and that a fault in it costs no training."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.engine import curves
from train.engine.curves import Curves, draw_curves, drawn, read_lines


def write_metrics(folder: Path, num_steps: int = 30, *, damaged: bool = False) -> Path:
    lines: list[dict[str, Any]] = [{"event": "start", "step": 0}]
    for step in range(1, num_steps + 1):
        rates = {"text": 1e-3, "image": 5e-4}
        mined = {"loss_in_batch": 1.0, "loss_mined": 0.5 * (step > 10), "num_mined": 4 * (step > 10)}
        lines.append({"event": "step", "step": step, "loss": 3 / step, "learning_rate": rates, "data_wait_share": 0.1} | mined)
        if step % 10 == 0:
            recall = {way: {"R@1": step / 100} for way in ("image_to_text", "text_to_image")}
            lines.append({"event": "eval", "step": step, "mean_R@1": step / 100, "best": step < 30} | recall)
            lines.append({"event": "watch", "step": step, "name": "past", "delta": -0.1, "ci95": [-0.2, 0.0]})
            lines.append({"event": "mining", "step": step, "quantiles": {"margin": {"5%": 0.0, "50%": 1.0, "95%": 2.0}}})
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + ('{"event": "eval", "st' if damaged else ""))
    return path


def test_the_panels_show_the_lines(tmp_path: Path) -> None:
    axes = drawn(read_lines(write_metrics(tmp_path, damaged=True)), "demo").axes
    titled = {each.get_title().partition(",")[0]: each for each in axes}
    shown = {title: {line.get_label(): line.get_xydata().tolist() for line in each.get_lines()} for title, each in titled.items()}
    assert [step for step, _ in shown["loss"]["mined"]] == list(range(11, 31)), "nothing mined is no loss of 0"
    assert shown["R@1 on val"]["mean"] == [[10, 10], [20, 20], [30, 30]] and shown["R@1 on val"]["best: 20.0, step 20"] == [[20, 20]]
    assert shown["retention sets: R@1 less base"]["past"] == [[10, -10], [20, -10], [30, -10]]
    assert shown["margin of the mined"]["median"] == [[10, 1], [20, 1], [30, 1]]
    assert [value for _, value in shown["learning rate"]["image"]] == [5e-4] * 30
    assert titled["scale and bias"].texts[0].get_text() == "nothing of it in this run"


def test_equal_lines_give_equal_files_and_many_steps_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = write_metrics(tmp_path, 95)
    monkeypatch.setattr(curves, "_MOST_STEPS", 10)
    steps = [line["step"] for line in read_lines(metrics) if line["event"] == "step"]
    assert steps == list(range(5, 96, 10)), "the last is always there"
    assert len([line for line in read_lines(metrics) if line["event"] == "eval"]) == 9
    draw_curves(metrics)
    first = {name: (tmp_path / name).read_bytes() for name in curves.NAMES}
    draw_curves(metrics)
    assert {name: (tmp_path / name).read_bytes() for name in curves.NAMES} == first
    assert first["curves.png"].startswith(b"\x89PNG") and b"<svg" in first["curves.svg"]


def test_a_fault_is_said_and_drawing_takes_its_share_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, times, clock = list[str](), list[float](), [0.0]

    def draw(path: Path) -> None:
        times.append(clock[0])
        clock[0] += 2.0
        if len(times) == 2:
            raise RuntimeError("no fonts")

    monkeypatch.setattr(curves, "draw_curves", draw)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    shown = Curves(SimpleNamespace(folder=tmp_path, log=said.append))  # type: ignore[arg-type]
    for _ in range(60):
        shown.draw(is_last=False)
        clock[0] += 10
    assert times == [0.0, 202.0, 404.0], "2 s of each 200"
    shown.draw(is_last=True)
    assert len(times) == 4
    assert said == [f"warning: {tmp_path}/curves.png could not be drawn (RuntimeError: no fonts)"]

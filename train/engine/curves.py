"""The picture of a run: loss, recall on val, retention sets, scale and bias, rates, margins of the mined; made anew at each evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.atomic import replace_files
from train.engine.metrics_log import CURVES

if TYPE_CHECKING:
    from train.engine.run import Run

NAMES = (CURVES, "curves.svg")
_MOST_STEPS = 1_000
"""Steps that are drawn, evenly spaced; every evaluation is."""
SHARE = 0.01
"""Of the time that goes by, at most, for drawing before the end."""
_COLOURS = ("#2f6db3", "#c2571a", "#2e8540", "#7a4fa3", "#8a6d1d", "#666666")

Lines = Sequence[Mapping[str, Any]]


def draw_curves(metrics: Path) -> None:
    """Write curves.png and curves.svg next to a metrics.jsonl, each committed by a rename; the same lines give the same bytes.

    Raises:
        OSError: a file cannot be read or written.
    """
    lines = read_lines(metrics)
    with rc_context(
        {"svg.hashsalt": "", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = drawn(lines, metrics.parent.name)

        png = partial(figure.savefig, format="png", dpi=110, metadata={"Software": None})
        svg = partial(figure.savefig, format="svg", metadata={"Date": None})
        replace_files(dict(zip((metrics.parent / name for name in NAMES), (png, svg), strict=True)))


def read_lines(metrics: Path) -> Lines:
    """Every line of an evaluation, a mining or a retention set, and up to _MOST_STEPS of steps; a damaged line is left out."""
    found, steps = list[str](), list[str]()
    with metrics.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            (steps if line.startswith('{"event": "step"') else found).append(line)
    stride = -(-len(steps) // _MOST_STEPS) or 1
    records = []
    for line in found + steps[::-1][::stride][::-1]:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def drawn(lines: Lines, title: str) -> Figure:
    """The figure: six panels; one that the run has nothing for says so."""
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 3).ravel().tolist()
    steps = [line for line in lines if line["event"] == "step"]
    steps = [line if line.get("num_mined") else {**line, "loss_mined": None} for line in steps]  # nothing mined is no loss of 0
    _draw_many(axes[0], "loss", steps, {"loss": "all", "loss_in_batch": "in-batch pairs", "loss_mined": "mined"})
    _draw_recall(axes[1], [line for line in lines if line["event"] == "eval"])
    _draw_retention(axes[2], [line for line in lines if line["event"] == "watch"])
    _draw_many(axes[3], "scale and bias", steps, {"logit_scale": "scale", "logit_bias": "bias"})
    _draw_rates(axes[4], steps)
    _draw_margins(axes[5], [line for line in lines if line["event"] == "mining"])
    for each in axes:
        each.set_xlabel("step")
        if not each.has_data():
            each.text(0.5, 0.5, "nothing of it in this run", ha="center", va="center", transform=each.transAxes, color=_COLOURS[-1])
    return figure


def _series(lines: Lines, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that have a number there."""
    points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), (int, float))]
    return [step for step, _ in points], [value for _, value in points]


def _draw_many(axes: Axes, title: str, lines: Lines, words: Mapping[str, str]) -> None:
    axes.set_title(title)
    for (key, word), colour in zip(words.items(), _COLOURS, strict=False):
        steps, values = _series(lines, key)
        if any(values):
            axes.plot(steps, values, color=colour, linewidth=1, label=word)
    if axes.has_data():
        axes.legend(frameon=False)


def _draw_recall(axes: Axes, lines: Lines) -> None:
    """Both directions and their mean on val; the best is marked."""
    axes.set_title("R@1 on val, percent")
    rows = [line for line in lines if "mean_R@1" in line]
    if not rows:
        return
    steps = [row["step"] for row in rows]
    for key, colour in zip(("image_to_text", "text_to_image"), _COLOURS[1:], strict=False):
        axes.plot(steps, [100 * row[key]["R@1"] for row in rows], color=colour, linewidth=1, label=key.replace("_", " "))
    axes.plot(steps, [100 * row["mean_R@1"] for row in rows], color=_COLOURS[0], marker=".", label="mean")
    best = next((row for row in reversed(rows) if row.get("best")), None)
    if best is not None:
        step, mean = best["step"], 100 * best["mean_R@1"]
        axes.plot(step, mean, "o", color=_COLOURS[0], markersize=9, fillstyle="none", label=f"best: {mean:.1f}, step {step}")
    axes.legend(frameon=False)


def _draw_retention(axes: Axes, lines: Lines) -> None:
    """Change of mean R@1 since the base, with its paired 95% interval."""
    axes.set_title("retention sets: R@1 less base, points")
    for name, colour in zip(dict.fromkeys(line["name"] for line in lines), _COLOURS, strict=False):
        rows = [line for line in lines if line["name"] == name]
        steps = [row["step"] for row in rows]
        axes.plot(steps, [100 * row["delta"] for row in rows], color=colour, marker=".", label=name)
        low, high = ([100 * row["ci95"][end] for row in rows] for end in (0, 1))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    if axes.has_data():
        axes.axhline(0, color=_COLOURS[-1], linewidth=0.8)
        axes.legend(frameon=False)


def _draw_rates(axes: Axes, lines: Lines) -> None:
    """Learning rates, and on the right the share of a step that waits for data."""
    axes.set_title("learning rate, and waiting for data (right)")
    for part, colour in zip(dict.fromkeys(key for line in lines for key in line.get("learning_rate", {})), _COLOURS, strict=False):
        rows = [line for line in lines if part in line.get("learning_rate", {})]
        axes.plot([row["step"] for row in rows], [row["learning_rate"][part] for row in rows], color=colour, linewidth=1, label=part)
    steps, waits = _series(lines, "data_wait_share")
    if steps:
        axes.legend(frameon=False, loc="upper right")
        right = axes.twinx()
        right.plot(steps, [100 * wait for wait in waits], color=_COLOURS[-1], linewidth=0.6, alpha=0.6)
        right.set_ylim(0, 100)
        right.set_ylabel("% of a step")
        right.grid(False)


def _draw_margins(axes: Axes, lines: Lines) -> None:
    """Quantiles of what the mined score below the true caption, at each refresh."""
    axes.set_title("margin of the mined, logits: 5 to 95%")
    rows = [line for line in lines if line.get("quantiles", {}).get("margin")]
    if not rows:
        return
    steps, margins = [row["step"] for row in rows], [row["quantiles"]["margin"] for row in rows]
    axes.fill_between(steps, [row["5%"] for row in margins], [row["95%"] for row in margins], color=_COLOURS[0], alpha=0.15, linewidth=0)
    axes.plot(steps, [row["50%"] for row in margins], color=_COLOURS[0], marker=".", label="median")
    axes.legend(frameon=False)


class Curves:
    """Draws a run's curves now and then, on the main process."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._due = time.monotonic()

    def draw(self, *, is_last: bool) -> None:
        """Draw them, if little time has gone into it or these are the last. What goes wrong is said, and stops no training.

        Args:
            is_last: draw in any case.
        """
        started = time.monotonic()
        if started < self._due and not is_last:
            return
        try:
            draw_curves(self._run.folder / "metrics.jsonl")
        except Exception as error:  # a picture is not worth a run
            self._run.log(f"warning: {self._run.folder}/{NAMES[0]} could not be drawn ({type(error).__name__}: {error})")
        now = time.monotonic()
        self._due = now + (now - started) / SHARE

"""What a report found, in a few lines of at most 78 columns: the last words of every command that makes one."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from eval.metrics.stage_metrics import mean_recall_at_1
from eval.progress import say

WIDTH = 78
_MOST_STAGES = 3
_TIED = "\xa0"
"""A blank at which no line is folded."""


def answer_lines(record: Mapping[str, Any], *, first: str | None = None, most: int = _MOST_STAGES) -> list[str]:
    """A line of each stage, at most `most`: its mean R@1 of both directions, the first stage it is compared with, the difference with its
    interval, the verdict. Where nothing is compared, each stage's mean.

    Args:
        record: of a report.
        first: the stage that is asked about, told first, and then what reranks it; None: in the report's order.

    >>> row = {"stage": "tuned", "against": "base", "direction": "both", "metric": "R@1", "delta": 0.128, "ci95": [0.083, 0.174],
    ...        "verdict": "better"}
    >>> stages = {name: {"image_to_text": {"R@1": r}, "text_to_image": {"R@1": r}} for name, r in (("base", 0.26), ("tuned", 0.388))}
    >>> answer_lines({"stages": stages, "comparisons": [row]})
    ['tuned  38.8 mean R@1 (base 26.0): +12.8 [+8.3, +17.4] better']
    """
    means = {stage: mean_recall_at_1(figures) for stage, figures in record["stages"].items()}
    first_of_stage: dict[str, Mapping[str, Any]] = {}
    for row in record["comparisons"]:
        if row["metric"] == "R@1" and row["direction"] == "both":
            first_of_stage.setdefault(row["stage"], row)
    compared = list(first_of_stage.values())
    compared.sort(key=lambda row: (row["stage"] != first, not row["stage"].startswith(f"{first}+")))
    if not compared:
        return [line for stage, mean in list(means.items())[:most] for line in folded(f"{stage}  {100 * mean:.1f} mean R@1")]
    shown = compared[:most]
    width = max(len(row["stage"]) for row in shown)
    lines = []
    for row in shown:
        low, high = row["ci95"]
        difference = f"{100 * row['delta']:+.1f} [{100 * low:+.1f},{_TIED}{100 * high:+.1f}] {row['verdict'].replace(' ', _TIED)}"
        against = f"({row['against']} {100 * means[row['against']]:.1f}): {difference}"
        lines.append(f"{row['stage'].ljust(width)}  {100 * means[row['stage']]:.1f} mean R@1 {against}")
    if max(map(len, lines)) > WIDTH:  # no name is cut: lines are folded instead
        lines = [part for line in lines for part in folded(line)]
    return [line.replace(_TIED, " ") for line in lines]


def folded(line: str) -> list[str]:
    """A line on as many as it takes; only a word longer than WIDTH is longer."""
    return textwrap.wrap(" ".join(line.split(" ")), WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def print_answer(lines: Sequence[str]) -> None:
    """Print the last words after an empty line; a run's log has them too."""
    say("\n" + "\n".join(lines))

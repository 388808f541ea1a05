"""What a report found, in a few lines of at most 78 columns: the last words of every command that makes one."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.metrics.stage_metrics import mean_recall_at_1
from eval.progress import say

WIDTH = 78
_MOST_STAGES = 3


def answer_lines(record: Mapping[str, Any], *, first: str | None = None) -> list[str]:
    """A line of each stage, at most three: its mean R@1 of both directions, the first stage it is compared with, the difference with its
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
        return [_fitted(stage, f"  {100 * mean:.1f} mean R@1") for stage, mean in list(means.items())[:_MOST_STAGES]]
    shown = compared[:_MOST_STAGES]
    parts = []
    for row in shown:
        low, high = row["ci95"]
        difference = f"{100 * row['delta']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] {row['verdict']}"
        parts.append((f"  {100 * means[row['stage']]:.1f} mean R@1 (", f" {100 * means[row['against']]:.1f}): {difference}"))
    room = WIDTH - max(len(mean) + len(rest) for mean, rest in parts)  # for two names
    longest, other = (max(len(row[key]) for row in shown) for key in ("stage", "against"))
    width = min(longest, max(room - other, room * 3 // 5))
    return [
        _shortened(row["stage"], width).ljust(width) + mean + _shortened(row["against"], room - width) + rest
        for row, (mean, rest) in zip(shown, parts, strict=True)
    ]


def print_answer(lines: Sequence[str]) -> None:
    """Print the last words after an empty line; a run's log has them too."""
    say("\n" + "\n".join(lines))


def _shortened(name: str, width: int) -> str:
    """A name of at most `width` columns; what is left out of its middle is an ellipsis."""
    if len(name) <= width:
        return name
    head = max(1, (width - 1) // 2)
    return f"{name[:head]}…{name[len(name) - max(0, width - head - 1) :]}"


def _fitted(name: str, figures: str) -> str:
    return _shortened(name, WIDTH - len(figures)) + figures

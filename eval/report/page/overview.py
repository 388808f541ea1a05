"""The answer of a report: one sentence, the tiles, a row of each stage with its interval and its verdict.

Shape letters: S resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.metrics.evaluate import Figures
from eval.metrics.significance import ImageSums, interval, resample_weights
from eval.metrics.stage_metrics import RECALLS, StageMetrics, mean_recall_at_1
from eval.report.page.about import About
from eval.report.render import signed
from eval.search.ranking import DIRECTIONS

MARKS = {"better": "▲", "worse": "▼", "no evidence": "○"}
"""A sign next to each verdict's words."""
_R_AT_1 = RECALLS.index("R@1")  # sums begin with the recalls


@dataclass(frozen=True)
class StageRow:
    """A stage on the first screen; shares in [0, 1].

    Attributes:
        recalls: R@1 image to text, text to image.
        mean: of both, with its 95% interval (bootstrap over images).
        compared: its row of `comparisons` for mean R@1; None: it is compared with nothing.
        chosen: what of it was chosen on which split.
    """

    stage: str
    recalls: tuple[float, float]
    mean: float
    ci95: tuple[float, float]
    compared: Mapping[str, Any] | None
    chosen: str


@dataclass(frozen=True)
class Overview:
    """The first screen.

    Attributes:
        rows: of every stage.
        tiles: of the stages that the answer goes through: a first stage, what it became, what reranks that.
        low, high: range of the chart's axis, shares; ticks: its labels.
        first_of: reranked stage -> the stage it reranks.
    """

    sentence: str
    rows: Sequence[StageRow]
    tiles: Sequence[StageRow]
    low: float
    high: float
    ticks: Sequence[float]
    first_of: Mapping[str, str]

    def place(self, share: float) -> float:
        """Where a share lies on the chart's axis, percent of its width."""
        return round(100 * (share - self.low) / (self.high - self.low), 2)


def overview(figures: Figures, about: About, chosen: Mapping[str, str]) -> Overview:
    """The first screen of figures; chosen: of each stage, what of it was chosen on which split."""
    first_of = {row["stage"]: row["against"] for row in figures.outcomes if row["top_k"] is not None}
    means = [row for row in figures.comparisons if row["metric"] == "R@1" and row["direction"] == "both"]
    main = next((row for row in means if (row["stage"], row["against"]) == about.pair), means[0] if means else None)
    compared: dict[str, Mapping[str, Any]] = {}
    for row in means if main is None else [main, *means]:
        compared.setdefault(row["stage"], row)
    intervals = mean_intervals(figures.queries, list(figures.stages))
    rows = [
        StageRow(
            stage,
            (values["image_to_text"]["R@1"], values["text_to_image"]["R@1"]),
            mean_recall_at_1(values),
            intervals[stage],
            compared.get(stage),
            "; ".join(_chosen_of(stage, chosen, first_of)),
        )
        for stage, values in figures.stages.items()
    ]
    low, high, ticks = _axis(rows)
    by_name = {row.stage: row for row in rows}
    sentence = _sentence(main, by_name, about, first_of) if main is not None else _alone(rows)
    tiles = [by_name[stage] for stage in _chain(main, first_of, figures.outcomes)] if main is not None else rows[:3]
    return Overview(sentence, rows, tiles, low, high, ticks, first_of)


def _chosen_of(stage: str, chosen: Mapping[str, str], first_of: Mapping[str, str]) -> list[str]:
    """What of a stage, or of the stage it reranks, was chosen."""
    found = [chosen[stage]] if stage in chosen else []
    return found + ([] if stage not in first_of else _chosen_of(first_of[stage], chosen, first_of))


def _chain(main: Mapping[str, Any], first_of: Mapping[str, str], outcomes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The stages of the tiles, each made from the one before."""
    stage, against = main["stage"], main["against"]
    before = [first_of[against]] if against in first_of else []
    after = [row["stage"] for row in outcomes if row["top_k"] is not None and row["against"] == stage][:1]
    return list(dict.fromkeys([*before, against, stage, *after]))


def _sentence(main: Mapping[str, Any], rows: Mapping[str, StageRow], about: About, first_of: Mapping[str, str]) -> str:
    """The answer."""
    stage, against = main["stage"], main["against"]
    low, high = (signed(end) for end in main["ci95"])
    difference = f"({signed(main['delta'])}, 95% interval {low} to {high})"
    before, after = f"{100 * rows[against].mean:.1f}", f"{100 * rows[stage].mean:.1f}"
    verdict = "no evidence of a difference" if main["verdict"] == "no evidence" else main["verdict"]
    word = about.words.get((stage, against)) or ("Reranking" if first_of.get(stage) == against else None)
    if word is None:
        return f"{stage} has a mean R@1 of {after}, {against} of {before} {difference}: {verdict}."
    did = {"better": "raised", "worse": "lowered"}.get(main["verdict"], "moved")
    return f"{word} {did} mean R@1 from {before} to {after} {difference}: {verdict}."


def _alone(rows: Sequence[StageRow]) -> str:
    """Where nothing is compared."""
    parts = [f"{100 * row.mean:.1f} (95% interval {100 * row.ci95[0]:.1f} to {100 * row.ci95[1]:.1f})" for row in rows]
    named = [f"that of {row.stage} is {part}" for row, part in zip(rows, parts, strict=True)]
    return f"Mean R@1 is {parts[0]}." if len(rows) == 1 else f"Mean R@1: {', '.join(named)}."


def _axis(rows: Sequence[StageRow]) -> tuple[float, float, list[float]]:
    """(low, high, ticks): tens of percent around all intervals."""
    ends = [end for row in rows for end in row.ci95]
    low, high = np.floor(10 * min(ends)) / 10, np.ceil(10 * max(ends)) / 10
    if high <= low:
        low, high = (low, low + 0.1) if low < 1 else (0.9, 1.0)
    count = round(10 * (high - low))
    return float(low), float(high), [round(float(low) + 0.1 * number, 1) for number in range(count + 1) if count <= 5 or number % 2 == 0]


def mean_intervals(queries: pa.Table, stages: Sequence[str]) -> dict[str, tuple[float, float]]:
    """95% interval of each stage's mean R@1 of both directions, from the rows of queries.parquet, images drawn jointly."""
    images = {name: number for number, name in enumerate(pc.unique(queries["image_id"]).to_pylist())}
    weights_SI = resample_weights(len(images))
    found = {}
    for stage in stages:
        resampled = []
        for direction in DIRECTIONS:
            sums = StageMetrics.of(queries, stage, direction, images).sums
            resampled.append(ImageSums(sums.sums_IM[:, [_R_AT_1]], sums.counts_I).resampled_means(weights_SI))
        low, high = interval(np.mean(resampled, axis=0))[:, 0].tolist()
        found[stage] = low, high
    return found

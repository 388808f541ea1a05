"""Differences of R@1 between the stages of a report, with their paired intervals, all from the report's own rows (queries.parquet).

Shape letters: Q queries of one direction, I images, S resamples.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.comparison import compare
from eval.metrics.evaluate import Figures
from eval.metrics.metrics import recall_at_k
from eval.metrics.significance import ImageSums, interval, resample_weights
from eval.metrics.stage_metrics import RECALLS, StageMetrics
from eval.search.ranking import DIRECTIONS, Direction

_R_AT_1 = RECALLS.index("R@1")  # sums begin with the recalls
OneOrBoth = Literal["image_to_text", "text_to_image", "both"]


class Differences:
    """The stages of a report, read once and compared on demand."""

    def __init__(self, figures: Figures, dataset: RetrievalSet) -> None:
        self.figures, self.dataset = figures, dataset
        self.weights_SI = resample_weights(dataset.num_images)
        self._number = {name: number for number, name in enumerate(dataset.image_ids)}
        self._metrics: dict[tuple[str, Direction], StageMetrics] = {}
        self._compared = {(r["stage"], r["against"], r["direction"]): r for r in figures.comparisons if r["metric"] == "R@1"}
        self._own: dict[tuple[str, str, str], dict[str, Any]] = {}

    def metrics(self, stage: str, direction: Direction) -> StageMetrics:
        """A stage's per-query numbers; queries in the order of the data set."""
        if (stage, direction) not in self._metrics:
            self._metrics[stage, direction] = StageMetrics.of(self.figures.queries, stage, direction, self._number)
        return self._metrics[stage, direction]

    def recalls_at_1(self, stage: str) -> dict[str, float]:
        """R@1 of each direction, and their mean as `both`."""
        each = {direction: float(self.figures.stages[stage][direction]["R@1"]) for direction in DIRECTIONS}
        return each | {"both": float(np.mean(list(each.values())))}

    def of_means(self, stage: str, against: str) -> dict[str, Any]:
        """Difference of mean R@1 of both directions with its paired interval, as `comparisons` has it."""
        return _joint([(self.metrics(stage, d).sums, self.metrics(against, d).sums) for d in DIRECTIONS], self.weights_SI)

    def against_ranks(self, stage: str, ranks: Mapping[Direction, np.ndarray]) -> dict[str, Any]:
        """The same against ranks of the same queries that are no stage's own, int64 (Q,) by direction."""
        sides = []
        for direction in DIRECTIONS:
            metrics = self.metrics(stage, direction)
            found_QM = recall_at_k(ranks[direction], 1)[:, None]
            sides.append((metrics.sums, ImageSums.of(found_QM, metrics.image_Q, self.dataset.num_images)))
        return _joint(sides, self.weights_SI)

    def verdict(self, stage: str, against: str, direction: OneOrBoth) -> dict[str, Any]:
        """delta, ci95, p_value and verdict of a pair's R@1: the row of `comparisons` where it has one, so that two places never disagree.

        A pair that is not compared there is compared here alone, its p corrected over its own rows; `in_comparisons` says which.
        """
        key = stage, against, direction
        row = self._compared.get(key)
        if row is None:
            if key not in self._own:
                both = {(name, d): self.metrics(name, d) for name in (stage, against) for d in DIRECTIONS}
                rows = compare(both, [(stage, against)], self.weights_SI)
                self._own |= {(stage, against, r["direction"]): r for r in rows if r["metric"] == "R@1"}
            row = self._own[key]
        return {name: row[name] for name in ("delta", "ci95", "p_value", "verdict")} | {"in_comparisons": key in self._compared}


def _joint(sides: list[tuple[ImageSums, ImageSums]], weights_SI: np.ndarray) -> dict[str, Any]:
    """Mean over directions of the difference in R@1, bootstrap over images, jointly."""
    delta = np.mean([one.means()[_R_AT_1] - other.means()[_R_AT_1] for one, other in sides])
    resampled_SE = np.stack([_resampled(one, weights_SI) - _resampled(other, weights_SI) for one, other in sides], axis=1)
    return {"delta": float(delta), "ci95": interval(resampled_SE.mean(axis=1)[:, None])[:, 0].tolist()}


def _resampled(sums: ImageSums, weights_SI: np.ndarray) -> np.ndarray:
    """R@1 in each resample, shape (S,)."""
    return ImageSums(sums.sums_IM[:, [_R_AT_1]], sums.counts_I).resampled_means(weights_SI)[:, 0]

"""Where does a stage gain or lose? Every query falls in exactly one bin by where its best relevant item ranked before and after.

Shape letter: Q queries of one direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics.stage_metrics import StageMetrics
from eval.search.ranking import DIRECTIONS, Direction

BINS = ("right in both", "fixed", "broken", "missing", "wrong in both")
RIGHT, FIXED, BROKEN, MISSING, WRONG = range(len(BINS))


@dataclass(frozen=True)
class Step:
    """From one stage to another: `top_k` is the number of candidates re-ordered, or None where the second stage ranks everything anew."""

    stage: str
    against: str
    top_k: int | None


def outcome_bins(before_Q: np.ndarray, after_Q: np.ndarray, top_k: int | None) -> np.ndarray:
    """The bin of each query, as its number in BINS, int64 of shape (Q,), from the ranks of its best relevant item.

    right in both: first before and after; fixed: first only after; broken: first only before (an inversion); missing: no relevant item
    among the `top_k` that were re-ordered, so that no reranker could help; wrong in both: the rest. Without `top_k` nothing is missing.

    Raises:
        ValueError: a query is right after although its relevant item was not among the candidates.
    """
    missing_Q = np.zeros(before_Q.shape, dtype=bool) if top_k is None else before_Q > top_k
    if (wrong := np.flatnonzero(missing_Q & (after_Q == 1))).size:
        raise ValueError(f"query {wrong[0]} is right after re-ordering the first {top_k}, but its relevant item ranked below them")
    return np.select(
        [(before_Q == 1) & (after_Q == 1), after_Q == 1, before_Q == 1, missing_Q], [RIGHT, FIXED, BROKEN, MISSING], default=WRONG
    )


def outcome_rows(measured: Mapping[tuple[str, Direction], StageMetrics], steps: Sequence[Step]) -> list[dict[str, Any]]:
    """report.json's `outcomes`: the number of queries in each bin, per step and direction."""
    rows = []
    for step in steps:
        for direction in DIRECTIONS:
            bins_Q = outcome_bins(measured[step.against, direction].ranks_Q, measured[step.stage, direction].ranks_Q, step.top_k)
            counts = dict(zip(BINS, np.bincount(bins_Q, minlength=len(BINS)).tolist(), strict=True))
            if step.top_k is None:
                del counts["missing"]
            rows.append({"stage": step.stage, "against": step.against, "top_k": step.top_k, "direction": direction, "counts": counts})
    return rows

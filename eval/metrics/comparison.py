"""Is one stage better than another? Paired differences with intervals, corrected p-values and a verdict in words.

Shape letters: I images, M metrics, S resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics.metrics import RECALL_AT, recall_at_k
from eval.metrics.significance import correct, interval, sign_flip_p_values
from eval.metrics.stage_metrics import RECALLS, StageMetrics
from eval.search.ranking import DIRECTIONS, Direction


def compare(
    measured: Mapping[tuple[str, Direction], StageMetrics], pairs: Sequence[tuple[str, str]], weights_SI: np.ndarray
) -> list[dict[str, Any]]:
    """Recalls of each pair of stages, per direction and for both together; paired intervals, p corrected (Holm) within each pair."""
    rows: list[dict[str, Any]] = []
    for stage, against in pairs:
        sides = [(measured[stage, direction], measured[against, direction]) for direction in DIRECTIONS]
        for name, chosen in (*zip(DIRECTIONS, ([side] for side in sides), strict=True), ("both", sides)):
            rows += [{"stage": stage, "against": against, "direction": name, **row} for row in _compare_pair(chosen, weights_SI)]
    correct(rows)
    return rows


def _compare_pair(sides: Sequence[tuple[StageMetrics, StageMetrics]], weights_SI: np.ndarray) -> list[dict[str, Any]]:
    """A row of each recall, its p not corrected: difference of the mean over the given directions, bootstrap over images, jointly."""
    num = len(RECALLS)
    delta_M = np.mean([one.sums.means()[:num] - other.sums.means()[:num] for one, other in sides], axis=0)
    resampled_SM = np.mean(
        [(one.sums.resampled_means(weights_SI) - other.sums.resampled_means(weights_SI))[:, :num] for one, other in sides], axis=0
    )
    share_IM = np.mean([(one.sums.sums_IM - other.sums.sums_IM)[:, :num] / one.sums.counts_I.sum() for one, other in sides], axis=0)
    p_M = sign_flip_p_values(share_IM)
    bounds_2M = interval(resampled_SM)
    rows: list[dict[str, Any]] = []
    for column, k in enumerate(RECALL_AT):
        gains = [recall_at_k(one.ranks_Q, k) - recall_at_k(other.ranks_Q, k) for one, other in sides]
        rows.append(
            {
                "metric": RECALLS[column],
                "delta": float(delta_M[column]),
                "ci95": bounds_2M[:, column].tolist(),
                "p_value": float(p_M[column]),
                "wins": int(sum((gain > 0).sum() for gain in gains)),
                "losses": int(sum((gain < 0).sum() for gain in gains)),
            }
        )
    return rows

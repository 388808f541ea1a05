"""Which queries teach most about a step from one stage to the next? A fixed, small choice, the same every time.

Shape letters: Q queries of one direction, C captions, P positive pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.captions import near_duplicate_groups
from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics import outcomes
from eval.metrics.outcomes import BINS, Step, outcome_bins
from eval.metrics.stage_metrics import StageMetrics
from eval.search.ranking import DIRECTIONS, Direction, Ranking

MOST_SHOWN = 24
_SHARES = ((outcomes.BROKEN, 10), (outcomes.MISSING, 5), (outcomes.WRONG, 5), (outcomes.FIXED, 4))  # of MOST_SHOWN


def near_duplicate_on_top(dataset: RetrievalSet, ranking: Ranking, group_C: np.ndarray) -> np.ndarray:
    """Whether the first answer says nearly the same as a relevant one, bool (Q,): then the ground truth may be wrong, not the model.

    Of an image that asks: its first caption is of one near-duplicate group with a relevant one. Of a caption: one of its group is true of
    the first image.
    """
    images_P, captions_P = dataset.positive_pairs()
    num_groups = int(group_C.max()) + 1
    known = np.unique(images_P * num_groups + group_C[captions_P])
    top_Q, query_Q = ranking.top_indices_QK[:, 0], np.arange(ranking.num_queries)
    image_Q, caption_Q = (query_Q, top_Q) if ranking.direction == "image_to_text" else (top_Q, query_Q)
    return np.isin(image_Q * num_groups + group_C[caption_Q], known)


def _urgency(bin: int, before_Q: np.ndarray, after_Q: np.ndarray, near_Q: np.ndarray) -> np.ndarray:
    """Least for the most instructive, of the queries of one bin."""
    match bin:
        case outcomes.BROKEN:
            return -after_Q
        case outcomes.WRONG:
            return np.where(near_Q, 0, 2**40) + after_Q
    return -before_Q


def choose_failures(
    dataset: RetrievalSet,
    measured: Mapping[tuple[str, Direction], StageMetrics],
    rankings: Mapping[Direction, Ranking],
    step: Step,
    *,
    directions: Sequence[Direction] = DIRECTIONS,
    shares: Sequence[tuple[int, int]] = _SHARES,
) -> list[dict[str, Any]]:
    """report.json's `failures`: at most MOST_SHOWN queries of both directions, the most instructive first.

    Broken ones by how far their relevant item fell; missing ones by how deep it ranked; wrong in both, first those whose first answer is a
    near-duplicate of a relevant one, then the closest; fixed ones by how far it rose. Ties by direction and query id. `rankings` are those
    of the step's second stage.

    Args:
        shares: how many queries of each bin, where there are as many; their sum is the most in all.
    """
    most = sum(share for _, share in shares)
    group_C = near_duplicate_groups(dataset.captions, keeps_marks=dataset.keeps_marks)
    found: dict[int, list[tuple[int, dict[str, Any]]]] = {bin: [] for bin, _ in shares}  # (urgency, row)
    for direction in directions:
        ids = dataset.image_ids if direction == "image_to_text" else dataset.caption_ids
        before_Q, after_Q = measured[step.against, direction].ranks_Q, measured[step.stage, direction].ranks_Q
        near_Q = near_duplicate_on_top(dataset, rankings[direction], group_C)
        bins_Q = outcome_bins(before_Q, after_Q, step.top_k)
        for bin, rows in found.items():
            queries = np.flatnonzero(bins_Q == bin)
            urgency = _urgency(bin, before_Q, after_Q, near_Q)[queries]
            for place in np.argsort(urgency, kind="stable")[:most]:
                query = queries[place]
                row = {
                    "stage": step.stage,
                    "against": step.against,
                    "top_k": step.top_k,
                    "direction": direction,
                    "query_id": ids[query],
                    "bin": BINS[bin],
                    "rank_before": int(before_Q[query]),
                    "rank_after": int(after_Q[query]),
                    "near_duplicate_on_top": bool(near_Q[query] and after_Q[query] > 1),
                }
                rows.append((int(urgency[place]), row))
    taken = {bin: min(len(found[bin]), share) for bin, share in shares}
    for bin in taken:  # places left over go to the first that has more
        taken[bin] += min(len(found[bin]) - taken[bin], most - sum(taken.values()))
    return [row for bin, rows in found.items() for _, row in sorted(rows, key=lambda one: one[0])[: taken[bin]]]

"""Which queries teach most about a step from one stage to the next? A fixed, small choice, the same every time.

Shape letters: Q queries of one direction, C captions, P positive pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.captions import near_duplicate_groups
from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics import outcomes
from eval.metrics.outcomes import BINS, Step, outcome_bins
from eval.metrics.stage_metrics import StageMetrics
from eval.search.ranking import DIRECTIONS, Direction, Ranking

MOST_SHOWN = 24
_SHARES = (
    (outcomes.BROKEN, 10),
    (outcomes.MISSING, 5),
    (outcomes.WRONG, 5),
    (outcomes.FIXED, 4),
)  # of MOST_SHOWN; places left over go to the first that has more


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


@dataclass(frozen=True)
class _Side:
    """A step in one direction."""

    direction: Direction
    ids: Sequence[str]
    before_Q: np.ndarray
    after_Q: np.ndarray
    near_Q: np.ndarray

    def urgency_Q(self, bin: int) -> np.ndarray:
        """Least for the most instructive, of the queries of one bin."""
        match bin:
            case outcomes.BROKEN:
                return -self.after_Q
            case outcomes.WRONG:
                return np.where(self.near_Q, 0, 2**40) + self.after_Q
        return -self.before_Q


def choose_failures(
    dataset: RetrievalSet,
    measured: Mapping[tuple[str, Direction], StageMetrics],
    rankings: Mapping[Direction, Ranking],
    step: Step,
    most: int = MOST_SHOWN,
) -> list[dict[str, Any]]:
    """report.json's `failures`: at most `most` queries of both directions, the most instructive first.

    Broken ones by how far their relevant item fell; missing ones by how deep it ranked; wrong in both, first those whose first answer is a
    near-duplicate of a relevant one, then the closest; fixed ones by how far it rose. Ties by direction and query id.

    Args:
        rankings: of the step's second stage.
    """
    group_C = near_duplicate_groups(dataset.captions)
    found: dict[int, list[tuple[int, int, int]]] = {bin: [] for bin, _ in _SHARES}  # (urgency, side, query): sorts ties by id
    sides = []
    for number, direction in enumerate(DIRECTIONS):
        side = _Side(
            direction,
            dataset.image_ids if direction == "image_to_text" else dataset.caption_ids,
            measured[step.against, direction].ranks_Q,
            measured[step.stage, direction].ranks_Q,
            near_duplicate_on_top(dataset, rankings[direction], group_C),
        )
        sides.append(side)
        bins_Q = outcome_bins(side.before_Q, side.after_Q, step.top_k)
        for bin in found:
            queries = np.flatnonzero(bins_Q == bin)
            urgency = side.urgency_Q(bin)[queries]
            best = np.argsort(urgency, kind="stable")[:most]
            found[bin] += [(int(urgency[place]), number, int(queries[place])) for place in best]
    return [
        {
            "stage": step.stage,
            "against": step.against,
            "top_k": step.top_k,
            "direction": sides[number].direction,
            "query_id": sides[number].ids[query],
            "bin": BINS[bin],
            "rank_before": int(sides[number].before_Q[query]),
            "rank_after": int(sides[number].after_Q[query]),
            "near_duplicate_on_top": bool(sides[number].near_Q[query] and sides[number].after_Q[query] > 1),
        }
        for bin, number, query in _dealt({bin: sorted(members) for bin, members in found.items()}, most)
    ]


def _dealt(found: Mapping[int, list[tuple[int, int, int]]], most: int) -> list[tuple[int, int, int]]:
    """(bin, side, query): each bin's share, then what fits of the rest, bin after bin."""
    taken = {bin: min(len(found[bin]), share * most // MOST_SHOWN) for bin, share in _SHARES}
    for bin in taken:
        taken[bin] += min(len(found[bin]) - taken[bin], most - sum(taken.values()))
    return [(bin, number, query) for bin in taken for _, number, query in found[bin][: taken[bin]]]

"""How the additional views of one side become one score, chosen on another split than the one that is measured.

    captions     expanded text queries: text to image changes
    images       expanded image queries (crops, flips): image to text changes
    candidates   additional captions of the images that a text query searches: text to image changes

Shape letter: Q queries of one direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.metrics import recall_at_k
from eval.processes import Processes
from eval.search.ranking import Direction
from rerank.combine.combine import Pools, active_members, rank_ensemble
from rerank.combine.ensemble_weights import EQUAL_WITHIN
from rerank.combine.views import POOLINGS, Combination, EnsembleMember, Pool, Pooling

Side = Literal["captions", "images", "candidates"]
NUMBERS = (1, 2, 4)
WEIGHTS = (1 / 4, 1 / 2, 3 / 4, 1.0)


def direction_of(side: Side) -> Direction:
    """The direction whose ranks change with the views of a side."""
    return "image_to_text" if side == "images" else "text_to_image"


def pools_at(side: Side, pool: Pool | None) -> dict[Direction, Pools]:
    """The `pools` of `rerank.combine.combine.rank_ensemble`, with a pool on one side only."""
    return {direction_of(side): (None, pool) if side == "candidates" else (pool, None)}


def usable_poolings(side: Side, num_members: int, combination: Combination) -> list[Pooling]:
    """The poolings that can be used: reciprocal-rank pools views of queries only, and combines with the ranks of other members only."""
    fuses = side != "candidates" and (num_members == 1 or combination == "reciprocal-rank")
    return [pooling for pooling in POOLINGS if pooling != "reciprocal-rank" or fuses]


def most_views(members: Sequence[EnsembleMember], side: Side) -> int:
    """How many additional views the item with the most has."""
    views = [member.captions if side == "captions" else member.images for member in members]
    return max(int(np.diff(one.offsets).max(initial=0)) for one in views)


@dataclass(frozen=True)
class TriedPool:
    """One point of a choice.

    Attributes:
        pool: None: without the additional views.
        ranks_Q: rank of each query's best relevant item, int64, in the direction that changes.
    """

    pool: Pool | None
    ranks_Q: np.ndarray

    @property
    def recall(self) -> float:
        """R@1 of the direction that changes."""
        return float(recall_at_k(self.ranks_Q, 1).mean())


@dataclass(frozen=True)
class PoolChoice:
    """What was chosen for a side (None: off), and all that was tried, off first."""

    side: Side
    pool: Pool | None
    tried: Sequence[TriedPool]


def choose_pool(
    members: Sequence[EnsembleMember],
    weights: Sequence[float] | None,
    combination: Combination,
    dataset: RetrievalSet,
    side: Side,
    poolings: Sequence[Pooling] = POOLINGS,
    processes: Processes = Processes(),
    *,
    on_tried: Callable[[int], Any] = lambda points: None,
) -> PoolChoice:
    """The pooling, number and weight of additional views with the best R@1 of the direction they change; call on every process.

    Tried are "off" once, and each pooling with the first 1, 2, 4 and all views at weight 1/4, 1/2, 3/4 and 1; of poolings only those that
    can be used here (see `usable_poolings`). Of equally good points off, then the smallest weight, then the fewest views, then the pooling
    given first, for each view costs an embedding.

    Args:
        members: with additional views on that side; without any, off is all that is tried.
        weights: of the members; None: equal. A member of weight 0 is left out.
        on_tried: called with 1 after each point.

    Raises:
        UserError: see `rerank.combine.combine.rank_ensemble`.
    """
    members, weights = active_members(members, weights)
    usable = usable_poolings(side, len(members), combination)
    most = most_views(members, side)
    numbers = sorted({number for number in (*NUMBERS, most) if 0 < number <= most})
    pools = [Pool(pooling, number, weight) for pooling in poolings if pooling in usable for number in numbers for weight in WEIGHTS]
    tried = []
    for pool in (None, *pools):
        tried.append(TriedPool(pool, ranks_with(members, weights, combination, dataset, side, pool, processes)))
        on_tried(1)
    return PoolChoice(side, best_pool(tried), tried)


def best_pool(tried: Sequence[TriedPool]) -> Pool | None:
    """The pool that `choose_pool` takes; poolings count in the order they first appear."""
    order = {pooling: place for place, pooling in enumerate(dict.fromkeys(point.pool.pooling for point in tried if point.pool))}
    recalls = [point.recall for point in tried]
    equal = [point.pool for point, recall in zip(tried, recalls, strict=True) if recall >= max(recalls) - EQUAL_WITHIN]
    return min(equal, key=lambda pool: (pool.weight, pool.number, order[pool.pooling]) if pool else (0.0, 0, 0))


def ranks_with(
    members: Sequence[EnsembleMember],
    weights: Sequence[float],
    combination: Combination,
    dataset: RetrievalSet,
    side: Side,
    pool: Pool | None,
    processes: Processes,
) -> np.ndarray:
    """Rank of each query's best relevant item, int64 (Q,), in the direction that a side's views change."""
    direction = direction_of(side)
    found = rank_ensemble(
        members,
        dataset,
        weights=weights,
        combination=combination,
        pools=pools_at(side, pool),
        depth=1,
        directions=[direction],
        processes=processes,
    )
    return found[direction].best_ranks()

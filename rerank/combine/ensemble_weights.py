"""The weights of an ensemble and the rule that combines its members, chosen on another split than the one that is measured.

Every combination is tried at every point of a grid on the simplex of weights. A corner of it is one model alone, whose ranks do not
depend on the combination, so each is searched once. Shape letter: Q queries of one direction.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.metrics import recall_at_k
from eval.processes import Processes
from eval.search.ranking import DIRECTIONS, Direction
from rerank.combine.combine import active_members, rank_ensemble
from rerank.combine.views import Combination, EnsembleMember

MOST_POINTS = 100
EQUAL_WITHIN = 1e-12  # sums of the same wins may end in other bits
_STEPS = {1: 1, 2: 20, 3: 10}


def simplex(num_members: int) -> list[tuple[float, ...]]:
    """Weights to try, each of sum 1: two members in steps of 1/20, three of 1/10, more in the finest that make at most 100 points.

    The corners (one member alone) and the centre (equal weights) are always among them. The first member has the most weight first.

    >>> simplex(2)[:2], len(simplex(2)), len(simplex(3)), len(simplex(4))
    ([(1.0, 0.0), (0.95, 0.05)], 21, 67, 85)

    Raises:
        ValueError: there is no member.
    """
    if num_members < 1:
        raise ValueError(f"an ensemble has one member or more; found {num_members}")
    fine = (steps for steps in range(1, 11) if math.comb(steps + num_members - 1, num_members - 1) <= MOST_POINTS)
    steps = _STEPS.get(num_members) or max([1, *fine])
    points = [tuple(part / steps for part in parts) for parts in _compositions(num_members, steps)]
    centre = (1 / num_members,) * num_members
    if centre not in points:
        points.append(centre)
    return sorted(points, reverse=True)


def _compositions(num_parts: int, total: int) -> list[tuple[int, ...]]:
    """Every way to write a number as a sum of so many numbers of 0 or more, in order."""
    if num_parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _compositions(num_parts - 1, total - first)]


@dataclass(frozen=True)
class TriedWeights:
    """One point of a choice.

    Attributes:
        weights: one for each member; of sum 1.
        ranks: rank of each query's best relevant item, int64 (Q,), by direction.
    """

    combination: Combination
    weights: tuple[float, ...]
    ranks: Mapping[Direction, np.ndarray]

    @property
    def recall(self) -> float:
        """Mean R@1 of both directions."""
        return float(np.mean([recall_at_k(self.ranks[direction], 1).mean() for direction in DIRECTIONS]))

    @property
    def num_members(self) -> int:
        """How many have a weight above 0."""
        return sum(weight > 0 for weight in self.weights)

    @property
    def distance(self) -> float:
        """Squared distance from equal weights; rounded, so that the same weights in another order have the same one."""
        return round(sum((weight - 1 / len(self.weights)) ** 2 for weight in self.weights), 12)


@dataclass(frozen=True)
class EnsembleChoice:
    """What was chosen, and all that was tried: each combination in the order given, its points in that of `simplex`."""

    weights: tuple[float, ...]
    combination: Combination
    tried: Sequence[TriedWeights]


def choose_ensemble(
    members: Sequence[EnsembleMember],
    dataset: RetrievalSet,
    combinations: Sequence[Combination],
    processes: Processes = Processes(),
    *,
    on_tried: Callable[[int], Any] = lambda points: None,
) -> EnsembleChoice:
    """The combination and weights with the best mean R@1 of both directions; call on every process, each returns the same.

    Of equally good points the one with fewest active members, then the nearest to equal weights, then of the combination given first, then
    with more weight on the earlier members. Why: a model that gains nothing is a cost, and weights far from equal are more likely chance.

    Args:
        on_tried: called with 1 after each point, of a simplex for each combination.

    Raises:
        ValueError: no member or no combination is given, or one is given twice.
        UserError: see `rerank.combine.combine.rank_ensemble`.
    """
    if not combinations or len(set(combinations)) < len(combinations):
        raise ValueError(f"combinations: expected one or more, each once; found {list(combinations)}")
    alone: dict[tuple[float, ...], dict[Direction, np.ndarray]] = {}
    tried = []
    for combination in combinations:
        for weights in simplex(len(members)):
            ranks = alone.get(weights) or ranks_at(members, weights, combination, dataset, processes)
            if max(weights) == 1.0:
                alone[weights] = ranks
            tried.append(TriedWeights(combination, weights, ranks))
            on_tried(1)
    best = best_weights(tried)
    return EnsembleChoice(best.weights, best.combination, tried)


def best_weights(tried: Sequence[TriedWeights]) -> TriedWeights:
    """The point that `choose_ensemble` takes; combinations count in the order they first appear."""
    order = {combination: place for place, combination in enumerate(dict.fromkeys(point.combination for point in tried))}
    recalls = [point.recall for point in tried]
    equal = [point for point, recall in zip(tried, recalls, strict=True) if recall >= max(recalls) - EQUAL_WITHIN]
    return min(equal, key=lambda point: (point.num_members, point.distance, order[point.combination]))


def ranks_at(
    members: Sequence[EnsembleMember], weights: Sequence[float], combination: Combination, dataset: RetrievalSet, processes: Processes
) -> dict[Direction, np.ndarray]:
    """Rank of each query's best relevant item by the active members."""
    members, weights = active_members(members, weights)
    found = rank_ensemble(members, dataset, weights=weights, combination=combination, depth=1, processes=processes)
    return {direction: found[direction].best_ranks() for direction in DIRECTIONS}

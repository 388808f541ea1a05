"""The weights of an ensemble and the rule that combines its members, chosen on another split than the one that is measured.

Every combination is tried at every point of a grid on the simplex of weights. A corner of it is one model alone, whose ranks do not
depend on the combination, so each is searched once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from eval.search.ranking import DIRECTIONS, Direction
from rerank.combine.combine import active_members, rank_ensemble
from rerank.combine.rules import Combination
from rerank.combine.tuning import Tried, TunedSetting, best_setting
from rerank.combine.views import EnsembleMember, LateFusion

MOST_POINTS = 100
_STEPS = {1: 1, 2: 20, 3: 10}


def simplex(num_members: int) -> list[tuple[float, ...]]:
    """Weights to try, each of sum 1: two members in steps of 1/20, three of 1/10, more in the finest that make at most 100 points.

    The corners (one member alone) and the centre (equal weights) are always among them. The first member has the most weight first.

    >>> simplex(2)[:2], len(simplex(2)), len(simplex(3)), len(simplex(4))
    ([(1.0, 0.0), (0.95, 0.05)], 21, 67, 85)
    """
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


def choose_ensemble(
    members: Sequence[EnsembleMember],
    dataset: RetrievalSet,
    combinations: Sequence[Combination],
    processes: Processes = Processes(),
    *,
    on_tried: Callable[[int], Any] = lambda points: None,
) -> TunedSetting[LateFusion]:
    """The combination and weights with the best mean R@1 of both directions; call on every process, each returns the same.

    Of equally good points the one with fewest active members, then the nearest to equal weights, then of the combination given first, then
    with more weight on the earlier members. Why: a model that gains nothing is a cost, and weights far from equal are more likely chance.

    Args:
        combinations: one or more, each once.
        on_tried: called with 1 after each point, of a simplex for each combination.

    Raises:
        UserError: see `rerank.combine.combine.rank_ensemble`.
    """
    alone: dict[tuple[float, ...], dict[Direction, np.ndarray]] = {}
    tried = []
    for combination in combinations:
        for weights in simplex(len(members)):
            ranks = alone.get(weights)
            if ranks is None:
                active, shares = active_members(members, weights)
                found = rank_ensemble(active, dataset, weights=shares, combination=combination, depth=1, processes=processes)
                ranks = {direction: found[direction].best_ranks() for direction in DIRECTIONS}
            if max(weights) == 1.0:
                alone[weights] = ranks
            tried.append(Tried(LateFusion(combination, weights), ranks))
            on_tried(1)
    return TunedSetting(best_weights(tried), tried, dataset)


def best_weights(tried: Sequence[Tried[LateFusion]]) -> LateFusion:
    """The point that `choose_ensemble` takes; combinations count in the order they first appear."""
    order = list(dict.fromkeys(point.setting.combination for point in tried))

    def cost(fusion: LateFusion) -> tuple[int, float, int]:
        weights = fusion.weights
        distance = sum((weight - 1 / len(weights)) ** 2 for weight in weights)  # rounded: the same weights in another order are as near
        return sum(weight > 0 for weight in weights), round(distance, 12), order.index(fusion.combination)

    return best_setting(tried, cost)

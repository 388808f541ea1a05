"""Fusion: a cross-encoder's score plus the first stage's own, each in units of its spread, by a weight chosen on another split.

    fused(image, caption) = pair score / its unit + weight x first-stage score / its unit

The unit of each part is its deviation within a query, pooled over the queries of a direction: the root of the mean, over queries, of the
variance among a query's candidates. Units and weight are constants of the split the weight is chosen on, so that the score of a pair
depends on no other pair of the split that is measured, and is the same at every K (docs/score-interpolation.md).

Shape letters: Q queries, T candidates of each that are re-ordered.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eval.metrics.metrics import recall_at_k
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from rerank.reorder.reorder import reordered
from rerank.scoring.candidates import head_pairs
from rerank.scoring.pair_scores import PairScores

WEIGHTS = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""What is tried: 0 is the cross-encoder alone, 1 equal weights. Doubling, for a finer grid on a few hundred images would choose noise."""


@dataclass(frozen=True)
class Units:
    """Deviation within a query of the cross-encoder's and of the first stage's scores; 0 where they are constant, which leaves them out."""

    pair: float
    first: float

    @classmethod
    def of(cls, first: Ranking, scores: PairScores, top_k: int) -> "Units":
        """Those of the first `top_k` of every query of a direction.

        Raises:
            UserError, LookupError: see `rerank.reorder.reorder.rerank`.
        """
        return cls(deviation(scores.lookup(*head_pairs(first, top_k))), deviation(first.top_scores_QK[:, :top_k]))


def deviation(scores_QT: np.ndarray) -> float:
    """The deviation within a query, pooled over queries; exactly 0 where every query's scores are equal.

    >>> deviation(np.array([[1.0, 3.0], [10.0, 10.0]]))  # variances 1 and 0
    0.7071067811865476
    """
    if not np.ptp(scores_QT, axis=1).any():
        return 0.0
    return float(np.sqrt(scores_QT.var(axis=1, dtype=np.float64).mean()))


@dataclass(frozen=True)
class Fusion:
    """How two scores become one: the weight of the first stage, 0 or more, and the units of each direction."""

    weight: float
    units: Mapping[Direction, Units]

    def rank(self, first: Ranking, scores: PairScores, top_k: int) -> Ranking:
        """The first `top_k` of every query by fused score, ties in first-stage order; `top_scores_QK` holds fused scores there.

        With weight 0 the order is that of `rerank.reorder.reorder.rerank`.

        Raises:
            UserError, LookupError, ValueError: see `rerank.reorder.reorder.rerank`.
        """
        pair_scores_QT = scores.lookup(*head_pairs(first, top_k))
        return reordered(first, fused(pair_scores_QT, first.top_scores_QK[:, :top_k], self.weight, self.units[first.direction]))


def fused(pair_scores: np.ndarray, first_scores: np.ndarray, weight: float, units: Units) -> np.ndarray:
    """Fused scores, float64; any equal shapes.

    >>> fused(np.array([3.0, 1.0]), np.array([0.1, 0.2]), 0.5, Units(pair=2.0, first=0.1))
    array([2. , 1.5])
    """
    wide = zip((pair_scores.astype(np.float64), first_scores.astype(np.float64)), (units.pair, units.first), strict=True)
    pair, first = (scores / unit if unit else np.zeros_like(scores) for scores, unit in wide)
    return pair + weight * first


@dataclass(frozen=True)
class FusionChoice:
    """The chosen weight with the units, and the rank of each query's best relevant item, int64 (Q,), by weight tried and direction."""

    fusion: Fusion
    ranks: Mapping[float, Mapping[Direction, np.ndarray]]


def choose_weight(first: Mapping[Direction, Ranking], scores: PairScores, top_k: int) -> FusionChoice:
    """The weight with the best mean R@1 of both directions; of equally good ones the smallest, which trusts the cross-encoder most.

    One weight for both directions, for it says how far the two models are to be trusted, while the units are each direction's own.

    Raises:
        UserError, LookupError, ValueError: see `rerank.reorder.reorder.rerank`.
    """
    units = {direction: Units.of(first[direction], scores, top_k) for direction in DIRECTIONS}
    ranks: dict[float, dict[Direction, np.ndarray]] = {
        weight: {d: Fusion(weight, units).rank(first[d], scores, top_k).best_ranks() for d in DIRECTIONS} for weight in WEIGHTS
    }
    means = {weight: np.mean([recall_at_k(ranks[weight][d], 1).mean() for d in DIRECTIONS]) for weight in ranks}
    most = max(means.values()) - 1e-12  # sums of the same wins may end in other bits
    best = next(weight for weight, mean in means.items() if mean >= most)
    return FusionChoice(Fusion(best, units), ranks)

"""Fusion: a cross-encoder's score plus the first stage's own, each in units of its spread, by a weight chosen on another split.

    fused(image, caption) = pair score / its unit + weight x first-stage score / its unit

The unit of each part is its deviation within a query, pooled over the queries of a direction: the root of the mean, over queries, of the
variance among a query's candidates. An offset between queries orders nothing, so it counts for nothing. Why not each query by its own
deviation: where a query's candidates are all alike to the first stage, that would blow their last bits up to a full weight, and the
unit, with it the order, would change with K. Units and weight are constants of the split the weight is chosen on, so that the score of a
pair depends on no other pair of the split that is measured, and is the same at every K.

Shape letters: Q queries, T candidates of each that are re-ordered.
"""

from collections.abc import Mapping, Sequence
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
    """What the two parts of a fused score are divided by; 0 where a part is constant within every query, which leaves it out.

    Attributes:
        pair: deviation of the cross-encoder's scores within a query.
        first: deviation of the first stage's scores within a query.
    """

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
    """How two scores become one.

    Attributes:
        weight: of the first stage; 0 or more.
        units: of each direction.
    """

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
    return _in_units(pair_scores, units.pair) + weight * _in_units(first_scores, units.first)


def _in_units(scores: np.ndarray, unit: float) -> np.ndarray:
    wide = scores.astype(np.float64)
    return wide / unit if unit else np.zeros_like(wide)


@dataclass(frozen=True)
class FusionChoice:
    """What was tried on the split the weight is chosen on, and what came of it.

    Attributes:
        fusion: the chosen weight, with the units.
        ranks: rank of each query's best relevant item, int64 (Q,), by weight and direction.
    """

    fusion: Fusion
    ranks: Mapping[float, Mapping[Direction, np.ndarray]]


def choose_weight(first: Mapping[Direction, Ranking], scores: PairScores, top_k: int, weights: Sequence[float] = WEIGHTS) -> FusionChoice:
    """The weight with the best mean R@1 of both directions; of equally good ones the smallest, which trusts the cross-encoder most.

    One weight for both directions, for it says how far the two models are to be trusted, while the units are each direction's own. Why the
    smallest: the cross-encoder alone is the simplest reranking, and the first stage's weight has to earn its place.

    Raises:
        UserError, LookupError, ValueError: see `rerank.reorder.reorder.rerank`.
        ValueError: no weight is given, or one is negative or infinite.
    """
    if not weights or min(weights) < 0 or not np.isfinite(weights).all():
        raise ValueError(f"weights: expected finite ones of 0 or more; found {list(weights)}")
    units = {direction: Units.of(first[direction], scores, top_k) for direction in DIRECTIONS}
    ranks: dict[float, dict[Direction, np.ndarray]] = {
        weight: {d: Fusion(weight, units).rank(first[d], scores, top_k).best_ranks() for d in DIRECTIONS} for weight in sorted(set(weights))
    }
    means = {weight: np.mean([recall_at_k(ranks[weight][d], 1).mean() for d in DIRECTIONS]) for weight in ranks}
    most = max(means.values()) - 1e-12  # sums of the same wins may end in other bits
    best = next(weight for weight, mean in means.items() if mean >= most)
    return FusionChoice(Fusion(best, units), ranks)

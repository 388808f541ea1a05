"""Which score is a match? How likely a candidate of this score is relevant, and from which score on a wanted share of candidates is.

The pairs are those a person sees: each query of a split with its first K candidates, and the score that ordered them. The probability is
their isotonic regression: of all functions that never fall, the one nearest to what is relevant (Barlow et al. 1972; as calibration:
Zadrozny and Elkan 2002). A threshold is the lowest score at or above which the wanted share of the pairs is relevant.

Shape letters: Q queries, K candidates of each, N = Q x K pairs, L levels (scores at which a threshold may lie), I images, S resamples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics.significance import LEVEL, interval
from eval.search.ranking import Ranking

PRECISIONS = (0.5, 0.8, 0.9, 0.95)
"""The shares of relevant candidates that thresholds are found for."""
LEAST_PAIRS = 10
"""Fewer candidates than this tell no precision: a threshold that leaves fewer is none."""
NUM_BINS = 10
_MOST_LEVELS = 1000  # that a resample looks at, ever wider apart: of 100,000 pairs each leaves about 1% more above it than the one before
_MOST_SUMS = 40_000_000  # per-image sums held at once
_NOISE = 1e-12


@dataclass(frozen=True)
class CandidatePairs:
    """The candidates that the queries of a split are shown, in one direction.

    Attributes:
        scores_N: float64.
        relevant_N: bool.
        query_N: int64, the query of each.
        image_Q: int64, the image each query belongs to: the unit of the bootstrap.
        num_relevant: relevant pairs of the split, those that are no candidates too.
    """

    scores_N: np.ndarray
    relevant_N: np.ndarray
    query_N: np.ndarray
    image_Q: np.ndarray
    num_relevant: int

    @classmethod
    def of(cls, ranking: Ranking, top_k: int, image_Q: np.ndarray) -> "CandidatePairs":
        """The first `top_k` of every query of a ranking."""
        relevant_QK = np.zeros((ranking.num_queries, top_k), dtype=bool)
        query_P = np.repeat(np.arange(ranking.num_queries), np.diff(ranking.positive_offsets))
        inside_P = ranking.positive_ranks_P <= top_k
        relevant_QK[query_P[inside_P], ranking.positive_ranks_P[inside_P] - 1] = True
        scores_N = ranking.top_scores_QK[:, :top_k].astype(np.float64).ravel()
        query_N = np.repeat(np.arange(ranking.num_queries), top_k)
        return cls(scores_N, relevant_QK.ravel(), query_N, image_Q, len(ranking.positive_ranks_P))

    @property
    def image_N(self) -> np.ndarray:
        """The image of the query of each pair, int64."""
        return self.image_Q[self.query_N]

    def num_answered(self, score: float) -> int:
        """Queries with a candidate at or above a score."""
        return len(np.unique(self.query_N[self.scores_N >= score]))


def isotonic_points(scores_N: np.ndarray, relevant_N: np.ndarray) -> np.ndarray:
    """The isotonic regression of relevance on score, as points (score, probability) of shape (points, 2), both ascending.

    Neighbouring scores whose shares would fall are pooled, the first and the last score of each pool are points; `probability_at` draws
    lines between them. Equal scores are one.

    >>> isotonic_points(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True]))
    array([[1. , 0. ],
           [2. , 0.5],
           [3. , 0.5],
           [4. , 1. ]])
    """
    distinct, place_N = np.unique(scores_N, return_inverse=True)
    pools: list[tuple[float, float, int, int]] = []  # relevant pairs, pairs, first and last distinct score
    for number, (hits, count) in enumerate(zip(np.bincount(place_N, weights=relevant_N), np.bincount(place_N), strict=True)):
        first = number
        while pools and pools[-1][0] * count >= hits * pools[-1][1]:  # the share before is no smaller
            hits, count, first = hits + pools[-1][0], count + pools[-1][1], pools[-1][2]
            pools.pop()
        pools.append((hits, count, first, number))
    points = [(distinct[place], hits / count) for hits, count, first, last in pools for place in dict.fromkeys((first, last))]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def probability_at(points: Sequence[Sequence[float]] | np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The probability of scores: linear between points, that of the first and the last point outside them; any shape.

    >>> probability_at([[0.0, 0.2], [1.0, 0.6]], np.array([-5.0, 0.5, 9.0]))
    array([0.2, 0.4, 0.6])
    """
    table = np.asarray(points, dtype=np.float64)
    return np.interp(np.asarray(scores, dtype=np.float64), table[:, 0], table[:, 1])


def thresholds(pairs: CandidatePairs, weights_SI: np.ndarray) -> list[dict[str, Any]]:
    """For each of PRECISIONS the lowest score at or above which that share of the pairs is relevant; None: there is none.

    `ci95` is a percentile interval (bootstrap over images); an end that is None lies above every score: so many resamples reach the
    precision nowhere. `recall` is the share of the split's relevant pairs at or above the score, `queries` how many get an answer.

    Args:
        weights_SI: how often each image was drawn in each resample.
    """
    levels_L = np.unique(pairs.scores_N)[::-1]
    place_N = np.searchsorted(-levels_L, -pairs.scores_N)
    hits_L, counts_L = np.bincount(place_N, weights=pairs.relevant_N), np.bincount(place_N)
    found = _lowest(levels_L, np.cumsum(hits_L)[None], np.cumsum(counts_L)[None])[0]
    num_levels = max(2, min(_MOST_LEVELS, _MOST_SUMS // weights_SI.shape[1]))
    drawn_L = levels_L[np.unique(np.geomspace(1, len(levels_L), num_levels).round().astype(np.int64)) - 1]
    samples_SR = np.concatenate([_lowest(drawn_L, *_above(pairs, drawn_L, part)) for part in _parts(weights_SI, len(drawn_L))])
    rows: list[dict[str, Any]] = []
    for precision, score, samples_S in zip(PRECISIONS, found.tolist(), samples_SR.T, strict=True):
        if not np.isfinite(score):
            rows.append({"precision": precision, "score": None, "ci95": None, "recall": 0.0, "queries": 0})
            continue
        low = np.quantile(samples_S, LEVEL / 2, method="lower")
        high = np.quantile(samples_S, 1 - LEVEL / 2, method="higher")
        recall = float((pairs.relevant_N & (pairs.scores_N >= score)).sum() / pairs.num_relevant)
        ends = [float(end) if np.isfinite(end) else None for end in (low, high)]
        rows.append({"precision": precision, "score": score, "ci95": ends, "recall": recall, "queries": pairs.num_answered(score)})
    return rows


def _parts(weights_SI: np.ndarray, num_levels: int) -> Iterator[np.ndarray]:
    """The resamples, some at a time, as float64."""
    chunk = max(1, _MOST_SUMS // max(1, weights_SI.shape[1], num_levels))
    for start in range(0, len(weights_SI), chunk):
        yield weights_SI[start : start + chunk].astype(np.float64)


def _above(pairs: CandidatePairs, levels_L: np.ndarray, weights_SI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(relevant pairs, pairs) at or above each of descending levels in each resample, both of shape (S, L)."""
    num_images, num_levels = weights_SI.shape[1], len(levels_L)
    level_N = np.searchsorted(-levels_L, -pairs.scores_N)  # the highest level that the pair is not below
    within_N = level_N < num_levels
    cell_N = (pairs.image_N * num_levels + level_N)[within_N]
    hits, counts = (
        np.bincount(cell_N, weights=weights, minlength=num_images * num_levels).reshape(num_images, num_levels)
        for weights in (pairs.relevant_N[within_N], None)
    )
    return np.cumsum(weights_SI @ hits, axis=1), np.cumsum(weights_SI @ counts, axis=1)


def _lowest(levels_L: np.ndarray, hits_SL: np.ndarray, counts_SL: np.ndarray) -> np.ndarray:
    """The lowest level that reaches each of PRECISIONS, float64 of shape (S, precisions); inf: none does."""
    found = np.full((len(hits_SL), len(PRECISIONS)), np.inf)
    for column, precision in enumerate(PRECISIONS):
        reached_SL = (hits_SL >= (precision - _NOISE) * counts_SL) & (counts_SL >= LEAST_PAIRS)
        some_S = reached_SL.any(axis=1)
        last_S = reached_SL.shape[1] - 1 - np.argmax(reached_SL[some_S][:, ::-1], axis=1)
        found[some_S, column] = levels_L[last_S]
    return found


def calibrate(pairs: CandidatePairs, weights_SI: np.ndarray) -> dict[str, Any]:
    """`points` and `thresholds` of one stage in one direction, as calibration.json has them; arguments as of `thresholds`."""
    return {
        "points": isotonic_points(pairs.scores_N, pairs.relevant_N).tolist(),
        "thresholds": thresholds(pairs, weights_SI),
        "pairs": len(pairs.scores_N),
        "relevant_pairs": int(pairs.relevant_N.sum()),
        "num_queries": len(pairs.image_Q),
    }


def check_calibration(found: dict[str, Any], pairs: CandidatePairs, weights_SI: np.ndarray) -> dict[str, Any]:
    """What a calibration says of the pairs of a split, next to what is so: by bins of its probability, and at its thresholds.

    Returns:
        `bins` (those with pairs): mean probability said, share relevant and its 95% interval (bootstrap over images), number of pairs;
        `error`: the mean over pairs of the distance between both (expected calibration error); `thresholds`: precision wanted, the share
        relevant at or above its score here, with its interval, and the share of the queries that get an answer.
    """
    said_N = probability_at(found["points"], pairs.scores_N)
    bin_N = np.minimum((said_N * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bins: list[dict[str, Any]] = []
    for number in np.unique(bin_N):
        in_bin_N = bin_N == number
        share, ci95 = _share(pairs, in_bin_N, weights_SI)
        bins.append({"said": float(said_N[in_bin_N].mean()), "relevant": share, "ci95": ci95, "pairs": int(in_bin_N.sum())})
    observed_N = np.bincount(bin_N, weights=pairs.relevant_N)[bin_N] / np.bincount(bin_N)[bin_N]
    said_of_bin_N = np.bincount(bin_N, weights=said_N)[bin_N] / np.bincount(bin_N)[bin_N]
    error = float(np.abs(said_of_bin_N - observed_N).mean())
    rows: list[dict[str, Any]] = []
    for row in found["thresholds"]:
        if row["score"] is None:
            continue
        above_N = pairs.scores_N >= row["score"]
        found_here = dict(zip(("found", "ci95"), _share(pairs, above_N, weights_SI) if above_N.any() else (None, None), strict=True))
        rows.append({"precision": row["precision"], **found_here, "answered": pairs.num_answered(row["score"]) / len(pairs.image_Q)})
    return {"bins": bins, "error": error, "thresholds": rows}


def _share(pairs: CandidatePairs, chosen_N: np.ndarray, weights_SI: np.ndarray) -> tuple[float, list[float]]:
    """The share of some pairs that is relevant, and its interval."""
    image_n, relevant_n = pairs.image_N[chosen_N], pairs.relevant_N[chosen_N]
    sums_I2 = np.stack([np.bincount(image_n, weights=one, minlength=weights_SI.shape[1]) for one in (relevant_n, None)], axis=1)
    drawn_S2 = np.concatenate([part @ sums_I2 for part in _parts(weights_SI, 2)])
    with np.errstate(invalid="ignore"):
        samples_S1 = drawn_S2[:, :1] / drawn_S2[:, 1:]
    return float(relevant_n.mean()), interval(samples_S1)[:, 0].tolist()

"""Which score is a match? How likely a candidate of this score is relevant, and from which score on a wanted share of candidates is.

The pairs are those a person sees: each query of a split with its first K candidates, and the score that ordered them. The probability is
their isotonic regression: of all functions that never fall, the one nearest to what is relevant (Barlow et al. 1972; as calibration:
Zadrozny and Elkan 2002). A threshold is the lowest score at or above which the wanted share of the pairs is relevant.

Intervals draw images on both sides: a picture that is hard to tell from others is a wrong candidate of many queries, so that drawing
queries alone makes them too short (results/calibration.md). A pair counts as often as its query's image was drawn, times how often its
candidate's was, unless that is the same (the pigeonhole bootstrap: Owen 2007, arXiv 0711.2412).

Shape letters: Q queries, K candidates of each, N = Q x K pairs, L levels (scores at which a threshold may lie), I images, S resamples.
"""

from collections.abc import Sequence
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
NUM_RESAMPLES = 500
_MOST_LEVELS = 1000  # that a resample looks at, ever wider apart: of 100,000 pairs each leaves about 1% more above it than the one before
_NOISE = 1e-12


@dataclass(frozen=True)
class CandidatePairs:
    """The candidates that the queries of a split are shown, in one direction.

    Attributes:
        scores_N: float64.
        relevant_N: bool.
        query_N: int64, the query of each.
        image_Q: int64, the image each query is or belongs to: the unit of the bootstrap.
        item_image_N: int64, the same of each candidate.
        num_relevant: relevant pairs of the split, those that are no candidates too.
    """

    scores_N: np.ndarray
    relevant_N: np.ndarray
    query_N: np.ndarray
    image_Q: np.ndarray
    item_image_N: np.ndarray
    num_relevant: int

    @classmethod
    def of(cls, ranking: Ranking, top_k: int, image_Q: np.ndarray, image_of_item: np.ndarray) -> "CandidatePairs":
        """The first `top_k` of every query of a ranking; the image of each query, and of each gallery item."""
        relevant_QK = np.zeros((ranking.num_queries, top_k), dtype=bool)
        query_P = np.repeat(np.arange(ranking.num_queries), np.diff(ranking.positive_offsets))
        inside_P = ranking.positive_ranks_P <= top_k
        relevant_QK[query_P[inside_P], ranking.positive_ranks_P[inside_P] - 1] = True
        scores_N = ranking.top_scores_QK[:, :top_k].astype(np.float64).ravel()
        query_N = np.repeat(np.arange(ranking.num_queries), top_k)
        item_image_N = image_of_item[ranking.top_indices_QK[:, :top_k].ravel()]
        return cls(scores_N, relevant_QK.ravel(), query_N, image_Q, item_image_N, len(ranking.positive_ranks_P))

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
    place_N = _place(pairs, levels_L)
    hits_L, counts_L = np.bincount(place_N, weights=pairs.relevant_N), np.bincount(place_N)
    found = _lowest(levels_L, np.cumsum(hits_L)[None], np.cumsum(counts_L)[None])[0]
    ranks_L = np.geomspace(1, len(levels_L), min(_MOST_LEVELS, len(levels_L))).round().astype(np.int64)
    drawn_L = levels_L[np.unique(ranks_L) - 1]
    hits_SL, counts_SL = (np.cumsum(drawn, axis=1) for drawn in _resampled(pairs, _place(pairs, drawn_L), len(drawn_L), weights_SI))
    samples_SR = _lowest(drawn_L, hits_SL, counts_SL)
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


def _place(pairs: CandidatePairs, levels_L: np.ndarray) -> np.ndarray:
    """The highest of descending levels that each pair is not below, int64 of shape (N,); L: it is below all."""
    return np.searchsorted(-levels_L, -pairs.scores_N)


def _resampled(pairs: CandidatePairs, cell_N: np.ndarray, num_cells: int, weights_SI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(relevant pairs, pairs) of each cell in each resample, float64 of shape (S, cells); pairs of a cell beyond the last are left out."""
    inside_N = cell_N < num_cells
    cell_n, relevant_n = cell_N[inside_N], pairs.relevant_N[inside_N]
    image_n, item_n = pairs.image_N[inside_N], pairs.item_image_N[inside_N]
    own_n = image_n == item_n
    hits_SC, counts_SC = np.empty((len(weights_SI), num_cells)), np.empty((len(weights_SI), num_cells))
    for row, weights_I in enumerate(weights_SI):
        weights_n = weights_I[image_n] * np.where(own_n, 1.0, weights_I[item_n])
        hits_SC[row] = np.bincount(cell_n, weights=weights_n * relevant_n, minlength=num_cells)
        counts_SC[row] = np.bincount(cell_n, weights=weights_n, minlength=num_cells)
    return hits_SC, counts_SC


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
    count_B, said_B = np.bincount(bin_N, minlength=NUM_BINS), np.bincount(bin_N, weights=said_N, minlength=NUM_BINS)
    bins: list[dict[str, Any]] = []
    for number, shown in enumerate(_shares(pairs, bin_N, NUM_BINS, weights_SI, above=False)):
        if shown is not None:
            said = float(said_B[number] / count_B[number])
            bins.append({"said": said, "relevant": shown[0], "ci95": shown[1], "pairs": int(count_B[number])})
    error = sum(abs(row["said"] - row["relevant"]) * row["pairs"] for row in bins) / len(said_N)
    rows: list[dict[str, Any]] = []
    for row in found["thresholds"]:
        if row["score"] is not None:
            (shown,) = _shares(pairs, _place(pairs, np.array([row["score"]])), 1, weights_SI, above=True)
            share, ci95 = shown if shown is not None else (None, None)
            answered = pairs.num_answered(row["score"]) / len(pairs.image_Q)
            rows.append({"precision": row["precision"], "found": share, "ci95": ci95, "answered": answered})
    return {"bins": bins, "error": error, "thresholds": rows}


def _shares(pairs: CandidatePairs, cell_N: np.ndarray, num_cells: int, weights_SI: np.ndarray, *, above: bool) -> list[Any]:
    """(share that is relevant, its interval) of the pairs of each cell, or with `above` of it and those before; None: there are none."""
    one = np.ones((1, weights_SI.shape[1]))
    drawn = [_resampled(pairs, cell_N, num_cells, weights) for weights in (one, weights_SI)]
    if above:
        drawn = [(np.cumsum(hits, axis=1), np.cumsum(counts, axis=1)) for hits, counts in drawn]
    with np.errstate(invalid="ignore"):
        shares_1C, shares_SC = (hits / counts for hits, counts in drawn)
    found: list[Any] = []
    for share, samples_S in zip(shares_1C[0].tolist(), shares_SC.T, strict=True):
        found.append(None if np.isnan(share) else (share, interval(samples_S[:, None])[:, 0].tolist()))
    return found

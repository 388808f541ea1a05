"""Reranking proper: the head of every query re-ordered by pair scores, its tail left as the first stage had it.

Shape letters: Q queries, K depth of the stored head, T the top_k that is re-ordered, P positive pairs.
"""

from dataclasses import replace

import numpy as np

from eval.search.ranking import Ranking
from rerank.scoring.candidates import head_pairs
from rerank.scoring.pair_scores import PairScores


def rerank(first: Ranking, scores: PairScores, top_k: int) -> Ranking:
    """The ranking after the first `top_k` of every query are re-ordered by pair score, best first, ties in first-stage order.

    `top_scores_QK` of the result holds pair scores in its first `top_k` columns and, beyond them, the first stage's scores of the
    untouched tail: the two are on different scales and must not be compared across that border. Ranks of positives are exact:
    one within the head takes its new place, one below it keeps its rank (re-ordering the head moves nothing else).

    Raises:
        UserError: top_k is below 1 or deeper than the stored head.
        LookupError: a pair of a head has no score (the first five are named).
        ValueError: a positive's rank and the stored head contradict each other.
    """
    return reordered(first, scores.lookup(*head_pairs(first, top_k)))


def reordered(first: Ranking, scores_QT: np.ndarray) -> Ranking:
    """The ranking after the first T of every query are put in the order of their scores, best first, ties in first-stage order.

    Args:
        scores_QT: a number for each of the first T of every query; -inf: stays behind those that have one, in first-stage order, and keeps
            its first-stage score.

    Raises:
        ValueError: a positive's rank and the stored head contradict each other.
    """
    order_QT = np.argsort(-scores_QT, axis=1, kind="stable")
    shown_QT = np.where(np.isneginf(scores_QT), first.top_scores_QK[:, : scores_QT.shape[1]], scores_QT)
    return replace(
        first,
        top_indices_QK=_with_head(first.top_indices_QK, np.take_along_axis(first.top_indices_QK, order_QT, axis=1)),
        top_scores_QK=_with_head(first.top_scores_QK, np.take_along_axis(shown_QT, order_QT, axis=1)),
        positive_ranks_P=_new_ranks(first, order_QT),
    )


def best_ranks_by_size(first: Ranking, scores: PairScores, top_k: int) -> np.ndarray:
    """The rank of each query's best positive had only the first 1, 2, ... `top_k` been re-ordered, int64 of shape (T, Q).

    Row k - 1 equals `rerank(first, scores, k).best_ranks()`: among the first k the best positive is the one with the highest score, the
    earlier of two, and it is ranked behind those that score higher, and earlier ones that score the same. Where none of the first k is
    positive, the best keeps its rank.

    Raises:
        UserError, LookupError: as `rerank`.
    """
    scores_QT, places_T = scores.lookup(*head_pairs(first, top_k)), np.arange(top_k)
    is_right_QT = np.zeros(scores_QT.shape, dtype=bool)
    query_P = np.repeat(np.arange(first.num_queries), np.diff(first.positive_offsets))
    inside_P = first.positive_ranks_P <= top_k
    is_right_QT[query_P[inside_P], first.positive_ranks_P[inside_P] - 1] = True
    best_QT = np.maximum.accumulate(np.where(is_right_QT, scores_QT, -np.inf), axis=1)
    is_better_QT = is_right_QT & (scores_QT > np.pad(best_QT, ((0, 0), (1, 0)), constant_values=-np.inf)[:, :top_k])
    place_QT = np.maximum.accumulate(np.where(is_better_QT, places_T, -1), axis=1)
    ranks_TQ = np.tile(first.best_ranks(), (top_k, 1))
    for k in range(1, top_k + 1):
        best_Q1, place_Q1, head_QK = best_QT[:, k - 1 : k], place_QT[:, k - 1 : k], scores_QT[:, :k]
        ahead_QK = (head_QK > best_Q1) | ((head_QK == best_Q1) & (places_T[:k] < place_Q1))
        has_Q = place_Q1[:, 0] >= 0
        ranks_TQ[k - 1, has_Q] = 1 + ahead_QK[has_Q].sum(axis=1)
    return ranks_TQ


def _with_head(values_QK: np.ndarray, head_QT: np.ndarray) -> np.ndarray:
    return np.concatenate([head_QT.astype(values_QK.dtype, copy=False), values_QK[:, head_QT.shape[1] :]], axis=1)


def _new_ranks(first: Ranking, order_QT: np.ndarray) -> np.ndarray:
    """int64, shape (P,): the rank of each positive after the head of its query took the given order."""
    top_k = order_QT.shape[1]
    place_QT = np.empty_like(order_QT)
    np.put_along_axis(place_QT, order_QT, np.arange(top_k)[None, :], axis=1)
    query_P = np.repeat(np.arange(first.num_queries), np.diff(first.positive_offsets))
    ranks_P = first.positive_ranks_P.copy()
    inside_P = ranks_P <= top_k
    queries, places = query_P[inside_P], ranks_P[inside_P] - 1
    contradicting = np.flatnonzero(first.top_indices_QK[queries, places] != first.positive_indices_P[inside_P])
    if len(contradicting):
        query, place = queries[contradicting[0]], places[contradicting[0]]
        raise ValueError(
            f"The first stage's ranking ({first.direction}) contradicts itself in {len(contradicting)} places: query {query} "
            f"is said to hold positive {first.positive_indices_P[inside_P][contradicting[0]]} at rank {place + 1}, where its head holds "
            f"{first.top_indices_QK[query, place]}."
        )
    ranks_P[inside_P] = place_QT[queries, places] + 1
    return ranks_P

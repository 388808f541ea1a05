"""Retrieval metrics as pure functions of ranks; each is one formula with its symbols.

Symbols: a query q has R positives, at ranks r_1 < ... < r_R from 1 in its gallery; its best rank is r_1.
"""

import numpy as np

RECALL_AT = (1, 5, 10)


def recall_at_k(best_ranks: np.ndarray, k: int) -> np.ndarray:
    """1 where r_1 <= k, else 0; float64 per query. R@k of the literature (trec's success_k), not the share of positives found."""
    return (best_ranks <= k).astype(np.float64)


def reciprocal_rank(best_ranks: np.ndarray) -> np.ndarray:
    """1 / r_1 per query; its mean is MRR."""
    return 1.0 / best_ranks


def average_precision_at_r(offsets: np.ndarray, ranks_P: np.ndarray) -> np.ndarray:
    """(1 / R) * sum over positives j with r_j <= R of j / r_j, per query (mAP@R of Musgrave et al. 2020, arXiv 2003.08505).

    Args:
        offsets: int64, positives of query q at offsets[q]:offsets[q + 1]; at least one each.
        ranks_P: their ranks, in any order within a query.
    """
    query_P, sorted_P, place_P = _sorted_within(offsets, ranks_P)
    num_P = np.diff(offsets)[query_P]
    gain_P = np.where(sorted_P <= num_P, place_P / sorted_P, 0.0)
    return np.add.reduceat(gain_P, offsets[:-1]) / np.diff(offsets)


def r_precision(offsets: np.ndarray, ranks_P: np.ndarray) -> np.ndarray:
    """(number of positives with r_j <= R) / R, per query; arguments as average_precision_at_r."""
    query_P = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    found_P = (ranks_P <= np.diff(offsets)[query_P]).astype(np.float64)
    return np.add.reduceat(found_P, offsets[:-1]) / np.diff(offsets)


def _sorted_within(offsets: np.ndarray, ranks_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(query, rank, place from 1) of every positive, ranks ascending within each query."""
    query_P = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((ranks_P, query_P))
    place_P = np.arange(len(ranks_P)) - offsets[:-1][query_P] + 1
    return query_P, ranks_P[order], place_P

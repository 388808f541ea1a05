"""Retrieval metrics as pure functions: `retrieval_metrics` from a score matrix, and each metric from ranks, one formula each.

Symbols: a query q has R positives, at ranks r_1 < ... < r_R from 1 in its gallery; its best rank is r_1.
Shape letters: Q queries, N gallery items in the order of their ids, P positive (query, item) pairs of all queries together.
"""

import numpy as np

RECALL_AT = (1, 5, 10)


def retrieval_metrics(scores_QN: np.ndarray, relevant_QN: np.ndarray) -> dict[str, float]:
    """Every metric of a whole score matrix, the mean over queries; a search over tiles gives the same (eval/search/exact.py).

    Args:
        scores_QN: higher is better; equal scores are ordered by id, which is the order of the columns.
        relevant_QN: bool, which items are relevant to which query; at least one each.

    Item 1 of the first query ties with item 3 and comes first: its relevant items have ranks 2 and 3, those of the second query 1 and 4.

    >>> scores = np.array([[0.9, 0.8, 0.1, 0.8], [0.2, 0.4, 0.6, 0.3]])
    >>> relevant = np.array([[0, 1, 0, 1], [1, 0, 1, 0]], dtype=bool)
    >>> for name, value in retrieval_metrics(scores, relevant).items():
    ...     print(name, value)
    R@1 0.5
    R@5 1.0
    R@10 1.0
    median_rank 1.5
    mean_rank 1.5
    MRR 0.75
    mAP@R 0.375
    R-Precision 0.5
    """
    offsets, ranks_P = positive_ranks(scores_QN, relevant_QN)
    best_Q = np.minimum.reduceat(ranks_P, offsets[:-1])
    found = {f"R@{k}": recall_at_k(best_Q, k).mean() for k in RECALL_AT}
    found |= {"median_rank": np.median(best_Q), "mean_rank": best_Q.mean(), "MRR": reciprocal_rank(best_Q).mean()}
    found |= {"mAP@R": average_precision_at_r(offsets, ranks_P).mean(), "R-Precision": r_precision(offsets, ranks_P).mean()}
    return {name: float(value) for name, value in found.items()}


def positive_ranks(scores_QN: np.ndarray, relevant_QN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, ranks_P): the rank from 1 of every relevant item; those of query q at offsets[q]:offsets[q + 1]; arguments as above."""
    order_QN = np.argsort(-scores_QN, axis=1, kind="stable")
    ranks_QN = np.argsort(order_QN, axis=1) + 1
    return np.concatenate([[0], np.cumsum(relevant_QN.sum(axis=1))]), ranks_QN[relevant_QN]


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
    query_P = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    sorted_P = ranks_P[np.lexsort((ranks_P, query_P))]
    place_P = np.arange(len(ranks_P)) - offsets[:-1][query_P] + 1
    gain_P = np.where(sorted_P <= np.diff(offsets)[query_P], place_P / sorted_P, 0.0)
    return np.add.reduceat(gain_P, offsets[:-1]) / np.diff(offsets)


def r_precision(offsets: np.ndarray, ranks_P: np.ndarray) -> np.ndarray:
    """(number of positives with r_j <= R) / R, per query; arguments as average_precision_at_r."""
    query_P = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    found_P = (ranks_P <= np.diff(offsets)[query_P]).astype(np.float64)
    return np.add.reduceat(found_P, offsets[:-1]) / np.diff(offsets)

"""Adaptive reranking: a candidate that trails its query's first by the margin or more is not scored, and a query left with its first
alone keeps the first stage's order.

As a head is in the order of the first stage's scores, what is left of it is its beginning: each query gets a K of its own. One margin, a
difference of cosines, serves both directions (docs/adaptive-reranking.md).

Shape letters: Q queries, T candidates of each that would be re-ordered, N pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.errors import UserError
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from rerank.reorder.reorder import best_ranks_by_size, reordered
from rerank.scoring.candidates import CandidateLists, head_pairs, pair_keys
from rerank.scoring.pair_scores import PairScores

_NOISE = 1e-9  # of a share: sums of the same wins may end in other bits


def trails(first: Ranking, top_k: int) -> np.ndarray:
    """By how much each of the first `top_k` trails its query's first, float64 of shape (Q, T), ascending within a query.

    The first itself has the trail of the second, for it is scored only where there is another to compare it with.

    Raises:
        UserError: top_k is below 2 or deeper than the stored head.
    """
    if not 2 <= top_k <= first.depth:
        raise UserError(
            f"Adaptive reranking needs a top_k of 2 to {first.depth}, the number of candidates retrieved per query; found {top_k}. "
            "Raise top_k, or retrieve a deeper first-stage list."
        )
    scores_QT = first.top_scores_QK[:, :top_k].astype(np.float64)
    trails_QT = scores_QT[:, :1] - scores_QT
    trails_QT[:, 0] = trails_QT[:, 1]
    return trails_QT


def depths(first: Ranking, top_k: int, margin: float) -> np.ndarray:
    """How many candidates of each query are re-ordered, int64 of shape (Q,): 0 for one that is skipped whole, else at least 2.

    Raises:
        UserError: top_k is below 2 or deeper than the stored head, or the margin is negative or not a number.
    """
    if not margin >= 0:
        raise UserError(f"skip margin: expected a first-stage score difference of 0 or more; found {margin}.")
    return np.count_nonzero(trails(first, top_k) < margin, axis=1)


def needed_lists(rankings: Sequence[Ranking], top_k: int, margin: float) -> CandidateLists:
    """The pairs that reranking needs when all that trails by `margin` is left out: what `complete_scores` is to be given.

    A pair that both directions hold is needed if one of them needs it.

    Raises:
        UserError: see `depths`.
    """
    images, captions = [], []
    for ranking in rankings:
        images_QT, captions_QT = head_pairs(ranking, top_k)
        needed_QT = trails(ranking, top_k) < margin
        images.append(images_QT[needed_QT])
        captions.append(captions_QT[needed_QT])
    return CandidateLists.of_pairs(np.concatenate(images), np.concatenate(captions))


def rerank_within(first: Ranking, scores: PairScores, top_k: int, margin: float) -> Ranking:
    """The ranking after those of the first `top_k` that trail by less than `margin` are re-ordered by pair score.

    Ties keep first-stage order; `scores` need hold no other pairs. With a margin beyond every trail the result is that of
    `rerank.reorder.reorder.rerank`.

    Raises:
        UserError, LookupError, ValueError: see `depths` and `rerank.reorder.reorder.rerank`.
    """
    within_QT = np.arange(top_k)[None, :] < depths(first, top_k, margin)[:, None]
    images_QT, captions_QT = head_pairs(first, top_k)
    scores_QT = np.full(within_QT.shape, -np.inf)
    scores_QT[within_QT] = scores.lookup(images_QT[within_QT], captions_QT[within_QT])
    return reordered(first, scores_QT)


def pair_trails(rankings: Sequence[Ranking], top_k: int) -> np.ndarray:
    """The smallest trail at which each pair is asked for, by whatever direction, float64 of shape (N,), ascending.

    A pair is needed at the margins above its trail: of N pairs, `searchsorted(trails_N, margin)` are.

    Raises:
        UserError: see `trails`.
    """
    keys_N = np.concatenate([pair_keys(*head_pairs(ranking, top_k)).ravel() for ranking in rankings])
    trails_N = np.concatenate([trails(ranking, top_k).ravel() for ranking in rankings])
    order = np.lexsort((trails_N, keys_N))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = keys_N[order][1:] != keys_N[order][:-1]
    return np.sort(trails_N[order][is_first])


@dataclass(frozen=True)
class Saving:
    """What a margin saves, and what it costs, against reranking everything.

    Attributes:
        pairs: number of pairs that reranking everything needs, in both directions together.
        saved: number of them that are not needed.
        lost: share of queries, mean of both directions, that everything reranked answers rightly and this does not.
        loss: by how much mean R@1 of both directions falls: `lost`, less the share that only this answers rightly.
    """

    pairs: int
    saved: int
    share_saved: float
    lost: float
    loss: float


def saving(first: Mapping[Direction, Ranking], scores: PairScores, top_k: int, margin: float) -> Saving:
    """What `margin` saves and costs where every pair has been scored.

    Raises:
        UserError, LookupError, ValueError: see `rerank_within`.
    """
    trails_N = pair_trails([first[direction] for direction in DIRECTIONS], top_k)
    lost, gained = [], []
    for direction in DIRECTIONS:
        full_Q = rerank_within(first[direction], scores, top_k, np.inf).best_ranks() == 1
        found_Q = rerank_within(first[direction], scores, top_k, margin).best_ranks() == 1
        lost.append(float((full_Q & ~found_Q).mean()))
        gained.append(float((found_Q & ~full_Q).mean()))
    pairs, saved = len(trails_N), len(trails_N) - int(np.searchsorted(trails_N, margin))
    return Saving(pairs, saved, saved / pairs, float(np.mean(lost)), float(np.mean(lost) - np.mean(gained)))


def choose_margin(first: Mapping[Direction, Ranking], scores: PairScores, top_k: int, max_loss: float) -> float:
    """The smallest margin at which, as at every larger one, the share of answers lost is at most `max_loss`; inf: nothing can be skipped.

    Lost are those that reranking everything gets right, without setting off against them what skipping happens to get right, which other
    queries would not (docs/adaptive-reranking.md): R@1 falls by at most as much.

    Args:
        max_loss: share of queries, mean of both directions; 0.001 is a tenth of a point of R@1.

    Raises:
        UserError, LookupError, ValueError: see `rerank_within`.
    """
    steps, changes = zip(*(_losses(first[direction], scores, top_k) for direction in DIRECTIONS), strict=True)
    trails_N, changes_N = np.concatenate(steps), np.concatenate(changes)
    order = np.argsort(-trails_N, kind="stable")
    values, starts = np.unique(-trails_N[order], return_index=True)  # equal trails are left out together
    lost = np.cumsum(np.add.reduceat(changes_N[order], starts))
    beyond = np.flatnonzero(lost > max_loss + _NOISE)
    number = int(beyond[0]) if len(beyond) else len(values)
    return float("inf") if number == 0 else float(-values[number - 1])


def _losses(first: Ranking, scores: PairScores, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the share of lost queries changes as the margin falls: (trails, by how much when what trails by that much is left out too)."""
    is_right_TQ = best_ranks_by_size(first, scores, top_k) == 1  # were the first 1, 2, ... T re-ordered
    lost_QT = (is_right_TQ[-1] & ~is_right_TQ).T
    changes_QT = lost_QT[:, :-1].astype(np.float64) - lost_QT[:, 1:]  # leaving out place t + 1 leaves a depth of t + 1
    return trails(first, top_k)[:, 1:].ravel(), changes_QT.ravel() / (len(DIRECTIONS) * first.num_queries)

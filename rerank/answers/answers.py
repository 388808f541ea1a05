"""The answers to every query of one direction, in their final order, with the scores of both stages.

Shape letters: Q queries, K answers of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes
from eval.search.ranking import Direction, Ranking
from rerank.answers.first_stage import FirstAnswers
from rerank.reorder.skipping import depths
from rerank.scorers.scorer import PairScorer
from rerank.scoring.candidates import CandidateLists, head_pairs
from rerank.scoring.pair_scores import PairScores, complete_scores
from rerank.scoring.score_cache import ScoreCache
from rerank.scoring.time_budget import Budget, measure_pace, pick_top_k


@dataclass(frozen=True)
class Answers:
    """Row q is the list that query q gets, best first.

    Attributes:
        direction: image to text or text to image.
        indices_QK: int64, gallery indices, in their final order.
        cosines_QK: float32, the first stage's.
        first_ranks_QK: int32, place of each in the first stage's list, from 1.
        rerank_scores_QK: float32, the reranker's, NaN where a pair was not scored; None without a reranker.
        probabilities_QK: float32, that the answer is relevant; None without a calibration.
        num_matches_Q: int64, how many of the first answers are good enough to be shown; None: all are.
    """

    direction: Direction
    indices_QK: np.ndarray
    cosines_QK: np.ndarray
    first_ranks_QK: np.ndarray
    rerank_scores_QK: np.ndarray | None
    probabilities_QK: np.ndarray | None = None
    num_matches_Q: np.ndarray | None = None

    @classmethod
    def of(cls, first: Ranking, scores: PairScores | None, skip_margin: float | None = None) -> "Answers":
        """The first stage's list, reordered by pair scores if there are any; equal scores keep the first stage's order.

        Args:
            skip_margin: an answer this far below the first of its list, in cosine, is not scored and keeps its place; None: all are scored.

        Raises:
            LookupError: a pair has no score.
        """
        places_QK = np.broadcast_to(np.arange(1, first.depth + 1, dtype=np.int32), first.top_indices_QK.shape)
        if scores is None:
            return cls(first.direction, first.top_indices_QK, first.top_scores_QK, places_QK, None)
        is_scored_QK = scored(first, skip_margin)
        images_QK, captions_QK = head_pairs(first, first.depth)
        scores_QK = np.full(is_scored_QK.shape, np.nan, dtype=np.float32)
        scores_QK[is_scored_QK] = scores.lookup(images_QK[is_scored_QK], captions_QK[is_scored_QK])
        order_QK = np.argsort(np.where(is_scored_QK, -scores_QK, np.inf), axis=1, kind="stable")
        ordered = [np.take_along_axis(each, order_QK, axis=1) for each in (first.top_indices_QK, first.top_scores_QK, places_QK, scores_QK)]
        return cls(first.direction, *ordered)

    @property
    def num_queries(self) -> int:
        """Number of queries, Q."""
        return len(self.indices_QK)

    @property
    def depth(self) -> int:
        """Number of answers to each, K."""
        return self.indices_QK.shape[1]

    @property
    def shown_Q(self) -> np.ndarray:
        """Number of answers to each query that are shown, int64."""
        return np.full(self.num_queries, self.depth) if self.num_matches_Q is None else self.num_matches_Q

    @property
    def num_changed(self) -> int:
        """Number of queries whose first answer differs from the first stage's."""
        return int((self.first_ranks_QK[:, 0] != 1).sum())

    def most_moved(self, count: int) -> np.ndarray:
        """Query indices, int64: first by the first answer's rank in the first stage, largest first, then by the total change of ranks."""
        moved_Q = np.abs(self.first_ranks_QK - np.arange(1, self.depth + 1)).sum(axis=1)
        return np.lexsort((np.arange(self.num_queries), -moved_Q, -self.first_ranks_QK[:, 0]))[:count]


def scored(first: Ranking, skip_margin: float | None) -> np.ndarray:
    """Which answers are scored, bool of shape (Q, K): see rerank/reorder/skipping.py. A list of one needs no order; it is scored only if
    skip_margin is None.
    """
    if skip_margin is None:
        return np.ones(first.top_indices_QK.shape, dtype=bool)
    if first.depth < 2:
        return np.zeros(first.top_indices_QK.shape, dtype=bool)
    return np.arange(first.depth)[None, :] < depths(first, first.depth, skip_margin)[:, None]


def pairs_to_score(rankings: Sequence[Ranking], skip_margin: float | None = None) -> CandidateLists:
    """Every pair of these lists that is scored, each once, also if it is in the lists of both directions."""
    images, captions = [], []
    for ranking in rankings:
        is_scored_QK = scored(ranking, skip_margin)
        images_QK, captions_QK = head_pairs(ranking, ranking.depth)
        images.append(images_QK[is_scored_QK])
        captions.append(captions_QK[is_scored_QK])
    return CandidateLists.of_pairs(np.concatenate(images), np.concatenate(captions))


def within_budget(found: FirstAnswers, budget: Budget) -> FirstAnswers:
    """The lists cut to the K of a time budget."""

    def cut(ranking: Ranking) -> Ranking:
        indices_QK, scores_QK = ranking.top_indices_QK[:, : budget.top_k], ranking.top_scores_QK[:, : budget.top_k]
        return replace(ranking, top_indices_QK=indices_QK, top_scores_QK=scores_QK)

    return replace(found, rankings={direction: cut(ranking) for direction, ranking in found.rankings.items()})


def fitting_budget(found: FirstAnswers, scorer: PairScorer, seconds: float, processes: Processes = Processes()) -> Budget:
    """The largest K that the reranker scores within a time budget, by its speed here; call on every process.

    Raises:
        UserError: the budget is too small for two answers to each query.
    """
    rankings = list(found.rankings.values())
    pace = measure_pace(scorer, found.collection, processes)
    return pick_top_k(rankings, pace, seconds, max(ranking.depth for ranking in rankings), world_size=processes.world_size)


def reranked_answers(
    found: FirstAnswers,
    scorer: PairScorer,
    *,
    skip_margin: float | None = None,
    cache: ScoreCache | None = None,
    execution: Execution = ONE_PROCESS,
) -> tuple[list[Answers], PairScores]:
    """The lists of every direction in the reranker's order, and its scores; call on every process.

    Args:
        skip_margin: see `Answers.of`.
        cache: scores of earlier runs, and where new ones go.

    Raises:
        UserError: an image does not decode any more, or a score is not finite.
    """
    rankings = list(found.rankings.values())
    lists = pairs_to_score(rankings, skip_margin)
    scores = complete_scores(scorer, found.collection, lists, cache=cache, execution=execution, progress=execution.processes.is_main)
    return [Answers.of(ranking, scores, skip_margin) for ranking in rankings], scores

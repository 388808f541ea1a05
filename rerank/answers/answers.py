"""The answers to every query of one direction, in their final order, with what both stages said of each.

Shape letters: Q queries, K answers of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.processes import Processes
from eval.ranking import Direction, Ranking
from rerank.answers.collection import Collection
from rerank.answers.first_stage import FirstAnswers
from rerank.candidates import CandidateLists, candidate_lists, head_pairs
from rerank.pairs import PairScores, complete_scores
from rerank.scorer import PairScorer


@dataclass(frozen=True)
class Answers:
    """Row q is the list that query q gets, best first.

    Attributes:
        direction: which side asks.
        indices_QK: int64, gallery indices, in their final order.
        cosines_QK: float32, the first stage's.
        first_ranks_QK: int32, place of each in the first stage's list, from 1.
        rerank_scores_QK: float32, the reranker's; None where there is no reranker.
    """

    direction: Direction
    indices_QK: np.ndarray
    cosines_QK: np.ndarray
    first_ranks_QK: np.ndarray
    rerank_scores_QK: np.ndarray | None

    @classmethod
    def of(cls, first: Ranking, scores: PairScores | None) -> "Answers":
        """The first stage's list, put in the order of pair scores where there are some; equal scores keep the first stage's order.

        Raises:
            LookupError: a pair has no score.
        """
        places_QK = np.broadcast_to(np.arange(1, first.depth + 1, dtype=np.int32), first.top_indices_QK.shape)
        if scores is None:
            return cls(first.direction, first.top_indices_QK, first.top_scores_QK, places_QK, None)
        scores_QK = scores.lookup(*head_pairs(first, first.depth))
        order_QK = np.argsort(-scores_QK, axis=1, kind="stable")
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
    def num_changed(self) -> int:
        """Queries whose first answer is another one than the first stage's."""
        return int((self.first_ranks_QK[:, 0] != 1).sum())

    def most_moved(self, count: int) -> np.ndarray:
        """The queries whose first answer came from furthest below, then those whose lists moved most in all, then as they stand; int64."""
        moved_Q = np.abs(self.first_ranks_QK - np.arange(1, self.depth + 1)).sum(axis=1)
        return np.lexsort((np.arange(self.num_queries), -moved_Q, -self.first_ranks_QK[:, 0]))[:count]


def pairs_to_score(rankings: Sequence[Ranking]) -> CandidateLists:
    """Every pair of these lists, each once: both directions share what both ask for."""
    first, *others = (candidate_lists([ranking], ranking.depth) for ranking in rankings)
    return first.union(*others)


def reranked_answers(
    found: FirstAnswers, scorer: PairScorer, *, processes: Processes = Processes(), progress: bool = False
) -> tuple[list[Answers], PairScores]:
    """The lists of every direction in the reranker's order, and the scores that gave it; call on every process.

    Raises:
        UserError: a picture does not decode (it did before), or a score is not finite.
    """
    rankings = list(found.rankings.values())
    collection: Collection = found.collection
    scores = complete_scores(scorer, collection, pairs_to_score(rankings), processes=processes, progress=progress)
    return [Answers.of(ranking, scores) for ranking in rankings], scores

"""Small searches for hypothesis to draw: a first stage of both directions whose scores fall with many ties, and a score for every pair."""

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from eval.search.ranking import DIRECTIONS, Direction, Ranking
from rerank.scoring.candidates import CandidateLists, candidate_lists
from rerank.scoring.pair_scores import PairScores, ScoringCost

unhurried = settings(deadline=None, max_examples=60)
"""For tests that draw searches: enough of them, and no test says how long anything takes."""


@dataclass(frozen=True)
class Drawn:
    """A search of I images among C captions and the other way round.

    Attributes:
        first: whole galleries deep.
        match_IC: the cross-encoder's score of every pair, float32.
        right_IC: bool, the right answers.
        top_k: 2 or more, within both galleries.
    """

    first: dict[Direction, Ranking]
    match_IC: np.ndarray
    right_IC: np.ndarray
    top_k: int

    def scores(self, lists: CandidateLists | None = None) -> PairScores:
        """Those of some pairs; by default of all that re-ordering `top_k` needs."""
        lists = candidate_lists(self.first.values(), self.top_k) if lists is None else lists
        values_N = self.match_IC[lists.image_of_pair_N, lists.caption_indices_N]
        return PairScores(lists, values_N, ScoringCost(lists.num_pairs, lists.num_images, 1.0))

    def head(self, direction: Direction, query: int) -> list[tuple[int, float, float, bool]]:
        """(item, first-stage score, match score, is right) of each candidate of a query, as the first stage has them."""
        ranking, sides = self.first[direction], (self.match_IC, self.right_IC)
        match, right = sides if direction == "image_to_text" else (side.T for side in sides)
        items = ranking.top_indices_QK[query, : self.top_k].tolist()
        shown = ranking.top_scores_QK[query].tolist()
        return [(item, shown[place], float(match[query, item]), bool(right[query, item])) for place, item in enumerate(items)]


def ranking(direction: Direction, cosines: np.ndarray, right: np.ndarray) -> Ranking:
    """Whole rows of a score matrix sorted, equal scores by index."""
    order = np.argsort(-cosines, axis=1, kind="stable")
    places = np.argsort(order, axis=1) + 1
    query_P, item_P = np.nonzero(right)
    offsets = np.append(0, np.cumsum(right.sum(axis=1)))
    return Ranking(direction, order, np.take_along_axis(cosines, order, 1), offsets, item_P, places[query_P, item_P])


@st.composite
def searches(draw: st.DrawFn) -> Drawn:
    """Scores on coarse grids, so that many are equal; every query has a right answer."""
    num_images, num_captions = draw(st.integers(2, 5)), draw(st.integers(2, 6))
    seed, levels = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([2, 4, 50]))
    return made(seed, num_images, num_captions, levels, draw(st.integers(2, min(num_images, num_captions))))


def made(seed: int, num_images: int, num_captions: int, levels: int, top_k: int) -> Drawn:
    """A random search whose scores take `levels` values."""
    rng, shape = np.random.default_rng(seed), (num_images, num_captions)
    right = rng.random(shape) < 0.3
    right[np.arange(num_images), rng.integers(0, num_captions, num_images)] = True
    right[rng.integers(0, num_images, num_captions), np.arange(num_captions)] = True
    cosines = (rng.integers(0, levels, shape) / 64 + right / 16).astype(np.float32)
    match = (rng.integers(0, levels, shape) / 2 + right).astype(np.float32)
    sides = {"image_to_text": (cosines, right), "text_to_image": (cosines.T, right.T)}
    return Drawn({d: ranking(d, *sides[d]) for d in DIRECTIONS}, match, right, top_k)

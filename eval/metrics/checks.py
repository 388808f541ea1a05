"""What is wrong with a stage handed to an evaluation: anything that would end in a figure nobody notices to be wrong.

Shape letters: Q queries, K depth of the stored lists, P positive pairs.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import PositivePairs, RetrievalSet
from eval.search.ranking import DIRECTIONS, Direction, Ranking

_MOST_NAMED = 5


class RankingCheck:
    """Checks rankings of one data set; its ids and relevant items are read once for all stages."""

    def __init__(self, dataset: RetrievalSet) -> None:
        images, captions = list(dataset.image_ids), list(dataset.caption_ids)
        self._sides = {"image_to_text": (images, captions), "text_to_image": (captions, images)}
        self._positives = {direction: dataset.positives(direction) for direction in DIRECTIONS}

    def data_fault(self) -> str:
        """Ids that stand for two images or two captions, or nothing."""
        faults = []
        for noun, ids in zip(("image", "caption"), self._sides["image_to_text"], strict=True):
            if len(set(ids)) < len(ids):
                twice = [name for name, count in Counter(ids).items() if count > 1]
                faults.append(f"{len(twice)} {noun} id(s) are there twice, e.g. {twice[:_MOST_NAMED]}; give each its own id")
        return "; ".join(faults)

    def fault(self, direction: Direction, ranking: Ranking) -> str:
        """What is wrong with a ranking, with up to five ids and what to do, or nothing."""
        queries, gallery = self._sides[direction]
        if ranking.direction != direction:
            return f"it holds a ranking {ranking.direction}; give it under its own direction"
        if ranking.num_queries != len(queries):
            return f"{ranking.num_queries} queries were ranked, but the split has {len(queries)}; rank every query of the split"
        return _head_fault(ranking, queries, len(gallery)) or _truth_fault(ranking, queries, self._positives[direction], len(gallery))


def _head_fault(ranking: Ranking, queries: Sequence[str], num_items: int) -> str:
    """What is wrong with the stored top K."""
    indices_QK, scores_QK = ranking.top_indices_QK, ranking.top_scores_QK
    if indices_QK.shape != scores_QK.shape or indices_QK.shape[0] != len(queries) or not indices_QK.shape[1]:
        return f"items of shape {indices_QK.shape} and scores of shape {scores_QK.shape}; expected ({len(queries)}, K) of both, K from 1"
    strange_Q = ~np.isfinite(scores_QK).all(axis=1)
    if strange_Q.any():
        return _named(strange_Q, queries, "have a score that is not a finite number", "score them in float32, with whole weights")
    outside_Q = ((indices_QK < 0) | (indices_QK >= num_items)).any(axis=1)
    if outside_Q.any():
        return _named(outside_Q, queries, f"name an item outside the {num_items} of the gallery", "rank the gallery of this split")
    sorted_QK = np.sort(indices_QK, axis=1)
    twice_Q = (sorted_QK[:, 1:] == sorted_QK[:, :-1]).any(axis=1)
    return _named(twice_Q, queries, "have an item twice in their top K", "rank each item once") if twice_Q.any() else ""


def _truth_fault(ranking: Ranking, queries: Sequence[str], positives: PositivePairs, num_items: int) -> str:
    """Where the relevant items of a ranking are not those of the split, or are at ranks where they cannot be."""
    offsets, ranks_P, items_P = ranking.positive_offsets, ranking.positive_ranks_P, ranking.positive_indices_P
    other_Q = np.diff(offsets) != positives.counts
    if not other_Q.any():
        query_P = np.repeat(np.arange(len(queries)), np.diff(offsets))
        other_Q[query_P[items_P != positives.indices_P]] = True
    if other_Q.any():
        what, remedy = "were ranked by other relevant items than the split's", "measure every stage by the same ground truth"
        return _named(other_Q, queries, what, remedy)
    wrong_P = (ranks_P < 1) | (ranks_P > num_items)
    inside_P = np.flatnonzero(~wrong_P & (ranks_P <= ranking.depth))
    wrong_P[inside_P] = ranking.top_indices_QK[query_P[inside_P], ranks_P[inside_P] - 1] != items_P[inside_P]
    wrong_Q = np.zeros(len(queries), dtype=bool)
    wrong_Q[query_P[wrong_P]] = True
    what = "have a relevant item at a rank where their top K holds another, or outside the gallery"
    return _named(wrong_Q, queries, what, "count ranks and top K from the same scores") if wrong_Q.any() else ""


def _named(bad_Q: Any, queries: Sequence[str], what: str, remedy: str) -> str:
    rows = np.flatnonzero(bad_Q)
    return f"{len(rows)} queries {what}, e.g. {[queries[row] for row in rows[:_MOST_NAMED]]}; {remedy}"


def pair_faults(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> list[str]:
    """What is wrong with the comparisons asked for, (stage, against) each, where `names` are measured."""
    faults = []
    if unknown := sorted({name for pair in pairs for name in pair} - set(names)):
        faults.append(f"no stage is called {unknown}; there will be {list(names)}")
    if own := sorted({stage for stage, against in pairs if stage == against}):
        faults.append(f"{own} would be compared with itself; name another stage")
    if twice := sorted(pair for pair, count in Counter(pairs).items() if count > 1):
        faults.append(f"{twice} stands twice, which would correct p for more comparisons than there are; name it once")
    return faults

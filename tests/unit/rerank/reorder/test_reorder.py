"""Reranking against brute force: whole galleries sorted again by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import UserError
from eval.search.ranking import DIRECTIONS, Ranking
from rerank.reorder.reorder import best_ranks_by_size, rerank
from rerank.scoring.candidates import CandidateLists, candidate_lists
from rerank.scoring.pair_scores import PairScores, ScoringCost


@st.composite
def searches(draw: st.DrawFn) -> tuple[Ranking, np.ndarray, np.ndarray, int]:
    """A first stage's ranking, the full order it was cut from, pair scores of all pairs (with many ties), and a top_k."""
    num_queries, num_items = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    depth = draw(st.integers(1, num_items))
    order = np.array([draw(st.permutations(range(num_items))) for _ in range(num_queries)])
    scores = np.array(
        [[draw(st.sampled_from([-1.5, 0.0, 0.25, 3.0])) for _ in range(num_items)] for _ in range(num_queries)], dtype=np.float32
    )
    positives = [sorted(draw(st.sets(st.integers(0, num_items - 1), min_size=1))) for _ in range(num_queries)]
    direction = draw(st.sampled_from(DIRECTIONS))
    first = Ranking(
        direction,
        order[:, :depth].astype(np.int64),
        np.tile(np.linspace(1, 0, depth, dtype=np.float32), (num_queries, 1)),
        np.cumsum([0, *map(len, positives)]).astype(np.int64),
        np.concatenate([np.array(row, dtype=np.int64) for row in positives]),
        np.concatenate([[order[q].tolist().index(item) + 1 for item in row] for q, row in enumerate(positives)]).astype(np.int64),
    )
    return first, order, scores, draw(st.integers(1, depth))


def pair_scores(first: Ranking, scores: np.ndarray, lists: CandidateLists) -> PairScores:
    images_N, captions_N = lists.image_of_pair_N, lists.caption_indices_N
    queries_N, items_N = (images_N, captions_N) if first.direction == "image_to_text" else (captions_N, images_N)
    return PairScores(lists, scores[queries_N, items_N], ScoringCost(lists.num_pairs, lists.num_images, 0.0))


def brute_force_order(order: list[int], scores: np.ndarray, top_k: int) -> list[int]:
    """The whole gallery: its first top_k sorted by score, ties as they stood, then the rest as it stood."""
    head = sorted(order[:top_k], key=lambda item: (-float(scores[item]), order.index(item)))
    return head + order[top_k:]


@given(searches())
def test_rerank_equals_brute_force(search: tuple) -> None:
    first, order, scores, top_k = search
    result = rerank(first, pair_scores(first, scores, candidate_lists([first], top_k)), top_k)
    for query in range(first.num_queries):
        expected = brute_force_order(order[query].tolist(), scores[query], top_k)
        assert result.top_indices_QK[query].tolist() == expected[: first.depth]
        assert result.top_scores_QK[query, :top_k].tolist() == [scores[query, item] for item in expected[:top_k]]
        assert result.top_scores_QK[query, top_k:].tolist() == first.top_scores_QK[query, top_k:].tolist()
        span = slice(first.positive_offsets[query], first.positive_offsets[query + 1])
        assert result.positive_indices_P[span].tolist() == first.positive_indices_P[span].tolist()
        assert result.positive_ranks_P[span].tolist() == [expected.index(item) + 1 for item in first.positive_indices_P[span]]
    assert result.direction == first.direction
    for name in ("top_indices_QK", "positive_ranks_P"):
        assert getattr(result, name).dtype == np.int64
    assert result.top_scores_QK.dtype == np.float32


@given(searches())
def test_equal_scores_change_nothing_and_the_first_stage_is_left_alone(search: tuple) -> None:
    first, _, scores, top_k = search
    before = {name: getattr(first, name).copy() for name in ("top_indices_QK", "top_scores_QK", "positive_ranks_P")}
    lists = candidate_lists([first], top_k)
    same = rerank(first, pair_scores(first, np.zeros_like(scores), lists), top_k)
    rerank(first, pair_scores(first, scores, lists), top_k)
    assert np.array_equal(same.top_indices_QK, first.top_indices_QK) and np.array_equal(same.positive_ranks_P, first.positive_ranks_P)
    for name, value in before.items():
        assert np.array_equal(getattr(first, name), value)


@given(searches())
def test_recall_at_top_k_is_the_first_stages(search: tuple) -> None:
    first, _, scores, top_k = search
    result = rerank(first, pair_scores(first, scores, candidate_lists([first], top_k)), top_k)
    assert np.array_equal(result.best_ranks() <= top_k, first.best_ranks() <= top_k)


def small() -> Ranking:
    return Ranking(
        "image_to_text",
        np.array([[2, 0, 1]]),
        np.array([[0.9, 0.5, 0.1]], dtype=np.float32),
        np.array([0, 1]),
        np.array([0]),
        np.array([2]),
    )


def test_what_is_refused() -> None:
    first = small()
    scores = PairScores(candidate_lists([first], 2), np.array([1.0, 0.5], dtype=np.float32), ScoringCost(2, 1, 0.0))
    assert rerank(first, scores, 2).top_indices_QK.tolist() == [[0, 2, 1]]
    assert rerank(first, scores, 2).positive_ranks_P.tolist() == [1]
    with pytest.raises(UserError, match="expected 1 to 3"):
        rerank(first, scores, 4)
    with pytest.raises(LookupError, match=r"\(0, 1\)"):
        rerank(first, scores, 3)
    with pytest.raises(ValueError, match="contradicts itself"):
        rerank(replace(first, positive_ranks_P=np.array([1])), scores, 2)


@given(searches())
def test_fewer_candidates_by_the_same_scores(search: tuple) -> None:
    """The scores of a deep list serve every smaller K; K = 1 is the first stage itself."""
    first, order, scores, top_k = search
    known = pair_scores(first, scores, candidate_lists([first], top_k))
    for k in range(1, top_k + 1):
        best = [
            min(brute_force_order(order[query].tolist(), scores[query], k).index(item) for item in items) + 1
            for query, items in enumerate(np.split(first.positive_indices_P, first.positive_offsets[1:-1]))
        ]
        assert rerank(first, known, k).best_ranks().tolist() == best
        assert best_ranks_by_size(first, known, top_k)[k - 1].tolist() == best
    assert rerank(first, known, 1).best_ranks().tolist() == first.best_ranks().tolist()

"""Exact search against a dense loop in float64, on scores with many ties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.dataset.retrieval_set import PositivePairs
from eval.errors import UserError
from eval.search.exact import GALLERY_BLOCK, QUERY_BLOCK, search_both
from eval.search.ranking import Ranking
from eval.search.ranks import device_num_above, num_above
from eval.search.top_k import top_k
from tests.unit.eval.one_direction import search


def pairs(rows: list[list[int]]) -> PositivePairs:
    return PositivePairs(np.cumsum([0, *map(len, rows)]).astype(np.int64), np.array([item for row in rows for item in row], dtype=np.int64))


def dense_orders(queries: np.ndarray, gallery: np.ndarray) -> list[list[int]]:
    """The whole gallery of each query by (-score, index); whole numbers this small are exact in float32 as in float64."""
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    return [sorted(range(len(gallery)), key=lambda item, row=row: (-row[item], item)) for row in scores]


def assert_exact(found: Ranking, queries: np.ndarray, gallery: np.ndarray, positives: PositivePairs, depth: int) -> None:
    for query, order in enumerate(dense_orders(queries, gallery)):
        head = order[:depth]
        assert found.top_indices_QK[query].tolist() == head
        assert found.top_scores_QK[query].tolist() == [float(queries[query] @ gallery[item]) for item in head]
        place = {item: rank for rank, item in enumerate(order, 1)}
        span = slice(positives.offsets[query], positives.offsets[query + 1])
        assert found.positive_ranks_P[span].tolist() == [place[item] for item in positives.indices_P[span]]


@st.composite
def tied_searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, PositivePairs, int]:
    num_queries, num_items, width = draw(st.integers(1, 5)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    values = st.integers(-2, 2)
    queries = np.array([[draw(values) for _ in range(width)] for _ in range(num_queries)], dtype=np.float32)
    gallery = np.array([[draw(values) for _ in range(width)] for _ in range(num_items)], dtype=np.float32)
    rows = [sorted(draw(st.sets(st.integers(0, num_items - 1), min_size=1))) for _ in range(num_queries)]
    return queries, gallery, pairs(rows), draw(st.integers(1, num_items))


@settings(deadline=None, max_examples=60)
@given(tied_searches())
def test_order_and_every_rank_equal_a_dense_loop(case: tuple[np.ndarray, np.ndarray, PositivePairs, int]) -> None:
    queries, gallery, positives, depth = case
    found = search("image_to_text", queries, gallery, positives, depth)
    assert found.depth == depth and found.num_queries == len(queries)
    assert_exact(found, queries, gallery, positives, depth)


@pytest.mark.parametrize("num_queries", [QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1])
def test_queries_around_a_block_border(num_queries: int) -> None:
    generator = np.random.default_rng(num_queries)
    queries = generator.integers(-3, 4, (num_queries, 4)).astype(np.float32)
    gallery = generator.integers(-3, 4, (40, 4)).astype(np.float32)
    positives = pairs([sorted({int(i) for i in generator.integers(0, 40, 3)}) for _ in range(num_queries)])
    assert_exact(search("text_to_image", queries, gallery, positives, 7), queries, gallery, positives, 7)


@pytest.mark.parametrize("num_items", [GALLERY_BLOCK - 1, GALLERY_BLOCK, GALLERY_BLOCK + 1])
def test_gallery_around_a_block_border(num_items: int) -> None:
    generator = np.random.default_rng(num_items)
    queries = generator.integers(-3, 4, (3, 4)).astype(np.float32)
    gallery = generator.integers(-3, 4, (num_items, 4)).astype(np.float32)
    positives = pairs([[0, num_items - 1], [num_items - 2], [5, 6, 7]])
    assert_exact(search("text_to_image", queries, gallery, positives, 40), queries, gallery, positives, 40)


def test_padding_of_the_gallery_is_never_found() -> None:
    """The rows of zeros that fill the last block score 0, above every real item here."""
    queries, gallery = np.ones((2, 3), dtype=np.float32), -np.ones((5, 3), dtype=np.float32)
    found = search("image_to_text", queries, gallery, pairs([[4], [0]]), 10)
    assert found.top_indices_QK.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert found.positive_ranks_P.tolist() == [5, 1]


def test_a_model_of_constant_scores_ranks_by_id() -> None:
    """Not R@1 = 1, which counting the strictly better would give it."""
    queries, gallery = np.ones((200, 2), dtype=np.float32), np.ones((300, 2), dtype=np.float32)
    positives = pairs([[query, query + 100] for query in range(200)])
    found = search("image_to_text", queries, gallery, positives, 10)
    assert found.top_indices_QK.tolist() == [list(range(10))] * 200
    assert found.positive_ranks_P.tolist() == [rank for query in range(200) for rank in (query + 1, query + 101)]
    assert found.best_ranks().tolist() == list(range(1, 201))


def test_many_positives_of_one_query() -> None:
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (4, 2)).astype(np.float32)
    gallery = generator.integers(-2, 3, (600, 2)).astype(np.float32)
    positives = pairs([list(range(600)), [3], list(range(0, 600, 2)), [599]])
    assert_exact(search("text_to_image", queries, gallery, positives, 10), queries, gallery, positives, 10)


def test_real_scores_are_ordered_by_themselves() -> None:
    """Floats without ties: the stored scores are the products, and their order is descending."""
    generator = np.random.default_rng(1)
    queries = generator.normal(size=(30, 16)).astype(np.float32)
    gallery = generator.normal(size=(500, 16)).astype(np.float32)
    found = search("image_to_text", queries, gallery, pairs([[q] for q in range(30)]), 20)
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    np.testing.assert_allclose(found.top_scores_QK, np.take_along_axis(scores, found.top_indices_QK, 1), rtol=1e-5, atol=1e-5)
    assert (np.diff(found.top_scores_QK, axis=1) <= 0).all()
    assert found.positive_ranks_P.tolist() == [int((row > row[q]).sum()) + 1 for q, row in enumerate(scores)]


def test_top_k_takes_the_lowest_indices_across_the_last_place() -> None:
    indices, values = top_k(torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]), 3)
    assert indices.tolist() == [[1, 5, 2], [0, 1, 2]]
    assert values.tolist() == [[3.0, 3.0, 2.0], [0.0, 0.0, 0.0]]


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 9999), num_items=st.integers(1, 12), most=st.sampled_from([1, 3, 12]))
def test_ranks_in_a_tile_on_a_gpu_are_those_of_a_loop(seed: int, num_items: int, most: int) -> None:
    """Equal scores of lower index rank above; positives lie before the tile, in it, and beyond it; some scores are -inf, some -0."""
    draws = np.random.default_rng(seed)
    tile = draws.choice(np.float32([-np.inf, -1.5, -0.0, 0.0, 0.25, 3.0]), (5, num_items))
    counts = draws.integers(0, most + 1, 5)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    row_p = np.repeat(np.arange(5), counts)
    own_p = draws.integers(-num_items, 2 * num_items, len(row_p))
    inside_p = (own_p >= 0) & (own_p < num_items)
    scores_p = draws.choice(np.float32([-1.5, 0.0, 0.25, 3.0]), len(row_p))
    scores_p[inside_p] = tile[row_p[inside_p], own_p[inside_p]]
    expected = [
        int(sum(score > own or (score == own and item < place) for item, score in enumerate(tile[row])))
        for row, own, place in zip(row_p, scores_p, own_p, strict=True)
    ]
    for count in (num_above, device_num_above):
        assert np.asarray(count(torch.from_numpy(tile), offsets, scores_p, own_p)).tolist() == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(bad: float) -> None:
    broken, good = np.ones((3, 2), dtype=np.float32), np.ones((3, 2), dtype=np.float32)
    broken[1, 0] = bad
    with pytest.raises(UserError, match=r"1 query vector\(s\) are not finite, at index \[1\]"):
        search_both(broken, good, pairs([[0]] * 3), pairs([[0]] * 3), 1)
    with pytest.raises(UserError, match="1 gallery vector"):
        search_both(good, broken, pairs([[0]] * 3), pairs([[0]] * 3), 1)


def test_a_query_without_a_relevant_item_is_refused() -> None:
    vectors = np.ones((3, 2), dtype=np.float32)
    with pytest.raises(UserError, match=r"1 queries have no relevant item, at index \[1\]"):
        search("image_to_text", vectors, vectors, pairs([[0], [], [2]]), 1)


def transposed(positives: PositivePairs, num_items: int) -> PositivePairs:
    return pairs([[query for query in range(len(positives.counts)) if item in positives.of(query)] for item in range(num_items)])


@settings(deadline=None, max_examples=60)
@given(tied_searches())
def test_both_directions_at_once_equal_the_dense_loop(case: tuple[np.ndarray, np.ndarray, PositivePairs, int]) -> None:
    images, captions, to_text, depth = case
    told = pairs([sorted({*to_text.of(image).tolist(), *range(image, len(captions), len(images))}) for image in range(len(images))])
    images = images[: len(captions)] if len(captions) < len(images) else images  # every caption is true of an image
    told = PositivePairs(told.offsets[: len(images) + 1], told.indices_P[: told.offsets[len(images)]])
    missing = set(range(len(captions))) - set(told.indices_P.tolist())
    assert not missing
    back = transposed(told, len(captions))
    found = search_both(images, captions, told, back, depth)
    assert_exact(found["image_to_text"], images, captions, told, min(depth, len(captions)))
    assert_exact(found["text_to_image"], captions, images, back, min(depth, len(images)))


def test_both_directions_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 7 x 5: ties cross them in every way; image to text is that of a search of its own, bit for bit."""
    monkeypatch.setattr("eval.search.exact.QUERY_BLOCK", 7)
    monkeypatch.setattr("eval.search.exact.GALLERY_BLOCK", 5)
    generator = np.random.default_rng(3)
    images = generator.integers(-1, 2, (23, 3)).astype(np.float32)
    captions = generator.integers(-1, 2, (61, 3)).astype(np.float32)
    told = pairs([sorted({*range(image, 61, 23), *generator.integers(0, 61, 3).tolist()}) for image in range(23)])
    back = transposed(told, 61)
    found = search_both(images, captions, told, back, 12)
    assert_exact(found["image_to_text"], images, captions, told, 12)
    assert_exact(found["text_to_image"], captions, images, back, 12)
    alone = search("image_to_text", images, captions, told, 12)
    assert alone.top_indices_QK.tolist() == found["image_to_text"].top_indices_QK.tolist()
    assert alone.positive_ranks_P.tolist() == found["image_to_text"].positive_ranks_P.tolist()

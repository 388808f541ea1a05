"""Ranking any scores that come as tiles, against a dense loop: whole numbers, so every tie is one."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.dataset.retrieval_set import PositivePairs
from eval.errors import UserError
from eval.search.exact import rank_product, rank_product_both
from eval.search.ranking import Ranking


class Matrix:
    """A matrix cut into tiles, in one buffer that the next tile overwrites."""

    def __init__(self, scores_QN: np.ndarray, query_block: int, gallery_block: int) -> None:
        self.num_queries, self.num_items = scores_QN.shape
        self.query_block, self.gallery_block = query_block, gallery_block
        self._scores_QN, self._tile = scores_QN, torch.empty(query_block, gallery_block)
        self.num_made = 0

    def row_of_tiles(self, row_block: int, column_blocks: Sequence[int] | None = None) -> Iterator[tuple[range, range, torch.Tensor]]:
        first = row_block * self.query_block
        rows = range(first, min(first + self.query_block, self.num_queries))
        for block in range(-(-self.num_items // self.gallery_block)) if column_blocks is None else column_blocks:
            start = block * self.gallery_block
            columns = range(start, min(start + self.gallery_block, self.num_items))
            self._tile.fill_(torch.inf)  # what is beyond the edge must not be read
            self._tile[: len(rows), : len(columns)] = torch.from_numpy(
                self._scores_QN[rows.start : rows.stop, columns.start : columns.stop]
            )
            self.num_made += 1
            yield rows, columns, self._tile[: len(rows), : len(columns)]


def pairs(rows: list[list[int]]) -> PositivePairs:
    return PositivePairs(np.cumsum([0, *map(len, rows)]).astype(np.int64), np.array([item for row in rows for item in row], dtype=np.int64))


def assert_ranked(found: Ranking, scores_QN: np.ndarray, positives: PositivePairs, depth: int) -> None:
    for query, row in enumerate(scores_QN):
        order = sorted(range(len(row)), key=lambda item, row=row: (-row[item], item))  # type: ignore[misc]
        assert found.top_indices_QK[query].tolist() == order[:depth]
        assert found.top_scores_QK[query].tolist() == [row[item] for item in order[:depth]]
        span = slice(positives.offsets[query], positives.offsets[query + 1])
        assert found.positive_ranks_P[span].tolist() == [order.index(item) + 1 for item in positives.of(query)]


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, PositivePairs, PositivePairs]:
    """(scores, positives of rows, positives of columns): every row and every column has one."""
    num_queries, num_items = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    scores = np.random.default_rng(draw(st.integers(0, 999))).integers(-2, 3, (num_queries, num_items)).astype(np.float32)
    true = {(n % num_queries, n % num_items) for n in range(max(num_queries, num_items))}
    true |= draw(st.sets(st.tuples(st.integers(0, num_queries - 1), st.integers(0, num_items - 1)), max_size=4))
    forth = [sorted(item for query, item in true if query == row) for row in range(num_queries)]
    back = [sorted(query for query, item in true if item == column) for column in range(num_items)]
    return scores, pairs(forth), pairs(back)


@settings(deadline=None, max_examples=100)
@given(matrices(), st.integers(1, 10), st.integers(1, 10), st.integers(1, 9))
def test_tiles_of_any_size_give_the_order_of_the_matrix(
    case: tuple[np.ndarray, PositivePairs, PositivePairs], query_block: int, gallery_block: int, depth: int
) -> None:
    scores, forth, back = case
    product = Matrix(scores, query_block, gallery_block)
    assert_ranked(rank_product("image_to_text", product, forth, depth), scores, forth, depth)
    both = rank_product_both(product, forth, back, depth)
    assert_ranked(both["image_to_text"], scores, forth, depth)
    assert_ranked(both["text_to_image"], scores.T, back, depth)


def test_how_many_tiles_are_made() -> None:
    """A tile that is a whole row gives the scores of its positives; of others two are cached, and the rest are computed again."""
    scores = np.arange(42, dtype=np.float32).reshape(6, 7) % 5
    near, far = pairs([[row] for row in range(6)]), pairs([[0, 2, 4, 6]] * 6)
    for positives, gallery_block, num_made in ((near, 7, 3), (near, 9, 3), (near, 4, 3 * 2), (near, 2, 3 * 4), (far, 2, 3 * (4 + 2))):
        product = Matrix(scores, 2, gallery_block)
        assert_ranked(rank_product("text_to_image", product, positives, 7), scores, positives, 7)
        assert product.num_made == num_made


def test_a_query_without_a_relevant_item_is_refused() -> None:
    product = Matrix(np.ones((2, 2), dtype=np.float32), 2, 2)
    with pytest.raises(UserError, match=r"1 queries have no relevant item, at index \[1\]"):
        rank_product("image_to_text", product, pairs([[0], []]), 1)
    with pytest.raises(UserError, match=r"1 queries have no relevant item, at index \[0\]"):
        rank_product_both(product, pairs([[1], [1]]), pairs([[], [0, 1]]), 1)

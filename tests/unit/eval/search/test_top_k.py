"""The running top K and the scan of a tile, against sorting everything; scores are few integers, so that ties are frequent."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.search.tile_scan import scan
from eval.search.top_k import TopK


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 8), (65, 16), (130, 2048), (64, 2041), (200, 1024)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_a_scan_finds_what_a_plain_comparison_finds(shape: tuple[int, int], share: float) -> None:
    draws = np.random.default_rng(shape[0] * 7 + shape[1])
    tile = draws.random(shape, dtype=np.float32)
    floor_q, floor_n = (np.full(size, 1 - share, dtype=np.float32) for size in shape)
    thresholds_qm = draws.random((shape[0], 3), dtype=np.float32)
    thresholds_qm[:, 2] = -1.0  # every score is above: no counter may overflow
    rows, columns, above_qm = scan(tile, floor_q, thresholds_qm)
    expected = np.nonzero(tile > floor_q[:, None])
    assert np.array_equal(rows, expected[0]) and np.array_equal(columns, expected[1])
    assert np.array_equal(above_qm, (tile[:, :, None] > thresholds_qm[:, None]).sum(axis=1))
    thresholds_nm = np.stack([draws.random(shape[1], dtype=np.float32), np.full(shape[1], -1.0, dtype=np.float32)], axis=1)
    columns, rows, above_nm = scan(tile, floor_n, thresholds_nm, by_column=True)
    expected = np.nonzero(floor_n[:, None] < tile.T)
    assert np.array_equal(columns, expected[0]) and np.array_equal(rows, expected[1])
    assert np.array_equal(above_nm, (tile[:, :, None] > thresholds_nm[None]).sum(axis=0))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 40), st.integers(1, 300), st.integers(1, 4), st.sampled_from([2, 9, 1000]))
def test_top_k_is_the_first_of_the_whole_order(
    seed: int, num_queries: int, depth: int, num_items: int, num_tiles: int, values: int
) -> None:
    draws = np.random.default_rng(seed)
    scores_QN = draws.integers(0, values, (num_queries, num_items)).astype(np.float32)
    edges = sorted({0, num_items, *draws.integers(0, num_items + 1, num_tiles).tolist()})
    by_rows, by_columns = TopK(num_queries, depth), TopK(num_queries, depth)
    for start, stop in zip(edges, edges[1:], strict=False):
        part = np.ascontiguousarray(scores_QN[:, start:stop])
        by_rows.update(part, start, np.empty((num_queries, 0), np.float32))
        by_columns.update(np.ascontiguousarray(part.T), start, np.empty((num_queries, 0), np.float32), by_column=True)
    for heads in (by_rows, by_columns):
        items_QK, found_QK = heads.best()
        for query, row in enumerate(scores_QN):
            order = sorted(range(num_items), key=lambda item, row=row: (-row[item], item))[:depth]
            assert items_QK[query].tolist() == order + [-1] * (depth - len(order))
            assert found_QK[query, : len(order)].tolist() == row[order].tolist()
            assert np.isneginf(found_QK[query, len(order) :]).all()


def test_a_query_whose_best_come_last_and_all_at_once() -> None:
    scores = np.sort(np.random.default_rng(0).random((2, 5000), dtype=np.float32), axis=1)
    heads = TopK(2, 10)
    for start in range(0, 5000, 500):
        heads.update(np.ascontiguousarray(scores[:, start : start + 500]), start, np.empty((2, 0), np.float32))
    assert heads.best()[0].tolist() == [list(range(4999, 4989, -1))] * 2


def test_more_queries_than_are_ranked_at_once() -> None:
    scores = np.random.default_rng(1).random((600, 900), dtype=np.float32)
    heads = TopK(600, 5)
    for start, stop in ((0, 400), (400, 900)):
        tile = np.ascontiguousarray(scores[:, start:stop].T)
        heads.update(tile, start, np.empty((600, 0), np.float32), by_column=True)
    expected = torch.topk(torch.from_numpy(scores), 5, dim=1)
    items, found = heads.best()
    assert np.array_equal(items, expected.indices.numpy()) and np.array_equal(found, expected.values.numpy())

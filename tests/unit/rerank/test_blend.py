"""Blends against whole matrices in float64: every pooling, every combination, on every side, at any size of block."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.errors import UserError
from eval.ranking import DIRECTIONS, Direction, Ranking
from eval.search import search_both
from rerank.blend import COMBINATIONS, Combination, Pools, rank_blend, within_query_deviation
from rerank.blend_products import reciprocal_ranks
from rerank.views import POOLINGS, Member, Pool, Views
from tests.unit.rerank.blend_oracle import as_set, blended_scores, made_up, member_scores, ranks_of, unit

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
NEAR = 1e-6


def small_blocks(monkeypatch: pytest.MonkeyPatch, queries: int, gallery: int, row_bytes: int) -> None:
    monkeypatch.setattr("eval.search.QUERY_BLOCK", queries)
    monkeypatch.setattr("eval.search.GALLERY_BLOCK", gallery)
    monkeypatch.setattr("rerank.blend_products.ROW_BYTES", row_bytes)


def assert_ranks_as(found: Ranking, scores_QN: np.ndarray, near: float = NEAR) -> None:
    """Scores equal to 1e-6, and every place that no score within `near` of it makes doubtful."""
    np.testing.assert_allclose(found.top_scores_QK, np.take_along_axis(scores_QN, found.top_indices_QK, axis=1), rtol=0, atol=NEAR)
    assert (np.diff(found.top_scores_QK, axis=1) <= 0).all()
    for query, scores_N in enumerate(scores_QN):
        span = slice(found.positive_offsets[query], found.positive_offsets[query + 1])
        clear_N = np.array([(np.abs(np.delete(scores_N, item) - scores_N[item]) > near).all() for item in range(len(scores_N))])
        ranks_N = np.array(ranks_of(scores_N.tolist()))
        for item, rank in zip(found.positive_indices_P[span], found.positive_ranks_P[span], strict=True):
            assert rank == ranks_N[item] or not clear_N[item]
            below, above = (scores_N < scores_N[item] - near).sum(), (scores_N > scores_N[item] + near).sum()
            assert above < rank <= len(scores_N) - below
        for place, item in enumerate(found.top_indices_QK[query], 1):
            assert ranks_N[item] == place or not clear_N[item]


def arms(members: int) -> list[tuple[Combination, str | None, str | None]]:
    """Every (combination, pooling of the side that asks, pooling of the side that is ranked) that has a meaning."""
    ways: list[str | None] = [None, *POOLINGS]
    return [
        (combination, asks, ranked)
        for combination, asks, ranked in product(COMBINATIONS if members > 1 else COMBINATIONS[:1], ways, ways)
        if ranked != "reciprocal-rank" and (asks != "reciprocal-rank" or members == 1 or combination == "reciprocal-rank")
    ]


def pool(pooling: str | None, number: int, weight: float) -> Pool | None:
    return None if pooling is None else Pool(pooling, number, weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(("combination", "asks", "ranked"), arms(2))
def test_two_members(monkeypatch: pytest.MonkeyPatch, combination: Combination, asks: str | None, ranked: str | None) -> None:
    small_blocks(monkeypatch, 3, 5, 4 * 13 * 2)
    members = [made_up(1, 7, 13, width=6), made_up(2, 7, 13, width=9)]
    pools: dict[Direction, Pools] = dict.fromkeys(DIRECTIONS, (pool(asks, 2, 0.75), pool(ranked, 3, 0.5)))
    found = rank_blend(members, as_set(7, 13), weights=[1.0, 3.0], combination=combination, pools=pools, depth=9)
    for direction in DIRECTIONS:
        near = 1e-9 if combination == "reciprocal-rank" else NEAR
        assert_ranks_as(found[direction], blended_scores(members, direction, [1.0, 3.0], combination, pools[direction]), near)

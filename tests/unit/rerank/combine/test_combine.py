"""Ensembles and pooled views against whole matrices in float64: every pooling, every combination, on every side, at any size of block."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.errors import UserError
from eval.search.exact import search_both
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from rerank.combine.combine import Pools, rank_ensemble
from rerank.combine.combined_tiles import reciprocal_ranks
from rerank.combine.rules import COMBINATIONS, POOLINGS, Combination
from rerank.combine.views import EnsembleMember, Pool, Views
from tests.unit.rerank.combine.ensemble_oracle import as_set, ensemble_scores, made_up, mixtures, pool, ranks_of, unit

ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")
NEAR = 1e-6


def small_blocks(monkeypatch: pytest.MonkeyPatch, queries: int, gallery: int, row_bytes: int) -> None:
    monkeypatch.setattr("eval.search.exact.QUERY_BLOCK", queries)
    monkeypatch.setattr("eval.search.exact.GALLERY_BLOCK", gallery)
    monkeypatch.setattr("rerank.combine.combined_tiles.ROW_BYTES", row_bytes)


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


@pytest.mark.parametrize(("combination", "asks", "ranked"), mixtures(2))
def test_two_members(monkeypatch: pytest.MonkeyPatch, combination: Combination, asks: str | None, ranked: str | None) -> None:
    small_blocks(monkeypatch, 3, 5, 4 * 13 * 2)
    members = [made_up(1, 7, 13, width=6), made_up(2, 7, 13, width=9)]
    pools: dict[Direction, Pools] = dict.fromkeys(DIRECTIONS, (pool(asks, 2, 0.75), pool(ranked, 3, 0.5)))
    found = rank_ensemble(members, as_set(7, 13), weights=[1.0, 3.0], combination=combination, pools=pools, depth=9)
    for direction in DIRECTIONS:
        near = 1e-9 if combination == "reciprocal-rank" else NEAR
        assert_ranks_as(found[direction], ensemble_scores(members, direction, [1.0, 3.0], combination, pools[direction]), near)


@pytest.mark.parametrize(("asks", "ranked"), [(asks, ranked) for _, asks, ranked in mixtures(1) if asks or ranked])
def test_one_member(monkeypatch: pytest.MonkeyPatch, asks: str | None, ranked: str | None) -> None:
    """The two directions pool otherwise, so each has its own oracle."""
    small_blocks(monkeypatch, 5, 4, 1)
    member = made_up(3, 9, 17)
    pools: dict[Direction, Pools] = {
        "image_to_text": (pool(asks, 1, 1.0), pool(ranked, 2, 0.25)),
        "text_to_image": (pool(asks, 3, 0.5), pool(ranked, 9, 1.0)),
    }
    found = rank_ensemble([member], as_set(9, 17), pools=pools, depth=17)
    for direction in DIRECTIONS:
        near = 1e-9 if asks == "reciprocal-rank" else NEAR
        assert_ranks_as(found[direction], ensemble_scores([member], direction, [1.0], "logits", pools[direction]), near)


@st.composite
def drawn_pools(draw: st.DrawFn) -> Pools:
    ways = [None, *POOLINGS]
    asks, ranked = draw(st.sampled_from(ways)), draw(st.sampled_from(ways[:-1]))
    return tuple(pool(way, draw(st.integers(0, 4)), draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))) for way in (asks, ranked))  # type: ignore[return-value]


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_size_any_block_any_mixture(monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    draw = data.draw
    small_blocks(monkeypatch, draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 400)))
    sizes = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    members = [
        made_up(draw(st.integers(0, 999)), *sizes, draw(st.integers(2, 7)), draw(st.integers(0, 3))) for _ in range(draw(st.integers(1, 3)))
    ]
    weights = [draw(st.sampled_from([0.0, 0.2, 1.0, 3.0])) for _ in members[1:]] + [1.0]
    combination: Combination = draw(st.sampled_from(COMBINATIONS))
    pools: dict[Direction, Pools] = {direction: draw(drawn_pools()) for direction in draw(st.sets(st.sampled_from(DIRECTIONS)))}
    if len(members) > 1 and any(asks and asks.pooling == "reciprocal-rank" for asks, _ in pools.values()):
        combination = "reciprocal-rank"
    found = rank_ensemble(members, as_set(*sizes), weights=weights, combination=combination, pools=pools, depth=draw(st.integers(1, 12)))
    for direction in DIRECTIONS:
        expected_QN = ensemble_scores(members, direction, weights, combination, pools.get(direction, (None, None)))
        assert_ranks_as(found[direction], expected_QN, 1e-9 if "reciprocal" in combination else NEAR)


def same(one: dict[Direction, Ranking], other: dict[Direction, Ranking]) -> bool:
    names = ("top_indices_QK", "top_scores_QK", "positive_ranks_P")
    return all(getattr(one[d], name).tobytes() == getattr(other[d], name).tobytes() for d in DIRECTIONS for name in names)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_plain_member_is_searched_as_ever(monkeypatch: pytest.MonkeyPatch, combination: Combination) -> None:
    """Bit for bit, with pools that change nothing and a second member of weight 0; weights of another total change nothing either."""
    small_blocks(monkeypatch, 7, 5, 100)
    member, dataset = made_up(4, 19, 31, width=40), as_set(19, 31)
    to_text, to_image = (dataset.positives(direction) for direction in DIRECTIONS)
    plain = search_both(member.images.vectors_ND, member.captions.vectors_ND, to_text, to_image, 10)
    nothing: Pools = (Pool("reciprocal-rank", 3, 0.0), Pool("max", 0, 1.0))
    assert same(plain, rank_ensemble([member], dataset, combination=combination, depth=10))
    pools: dict[Direction, Pools] = dict.fromkeys(DIRECTIONS, nothing)
    assert same(
        plain, rank_ensemble([member, made_up(5, 19, 31)], dataset, weights=[7.0, 0.0], combination=combination, pools=pools, depth=10)
    )
    bare = EnsembleMember(Views.plain(member.images.vectors_ND), Views.plain(member.captions.vectors_ND), 10.0, 0.0, CPU)
    assert same(plain, rank_ensemble([bare], dataset, pools={"text_to_image": (Pool("max", 5, 1.0), None)}, depth=10))


@pytest.mark.parametrize("pooling", [way for way in POOLINGS if way != "reciprocal-rank"])
def test_both_directions_of_one_product_are_those_of_two(monkeypatch: pytest.MonkeyPatch, pooling: str) -> None:
    """Captions have views, asking or asked: one product serves, whose scores are those of a search for each."""
    small_blocks(monkeypatch, 4, 6, 100)
    members, dataset, used = [made_up(6, 11, 23), made_up(7, 11, 23)], as_set(11, 23), pool(pooling, 3, 0.75)
    ways: dict[Direction, Pools] = {"image_to_text": (None, used), "text_to_image": (used, None)}
    together = rank_ensemble(members, dataset, pools=ways, depth=11)
    for direction in DIRECTIONS:
        alone = rank_ensemble(members, dataset, pools={direction: ways[direction]}, depth=11)[direction]
        np.testing.assert_allclose(alone.top_scores_QK, together[direction].top_scores_QK, rtol=0, atol=1e-6)
        assert_ranks_as(together[direction], ensemble_scores(members, direction, [1, 1], "logits", ways[direction]))


@pytest.mark.parametrize(("combination", "asks", "ranked"), mixtures(2))
def test_equal_scores_are_ordered_by_index(
    monkeypatch: pytest.MonkeyPatch, combination: Combination, asks: str | None, ranked: str | None
) -> None:
    """Models that give everything one score get chance, however they are combined."""
    small_blocks(monkeypatch, 3, 4, 90)
    ones = np.full((6, 4), 0.5, dtype=np.float32)
    twice = Views(ones, np.full((12, 4), 0.5, dtype=np.float32), np.arange(7) * 2)
    members = [EnsembleMember(twice, twice, scale, -1.0, CPU) for scale in (10.0, 30.0)]
    pools: dict[Direction, Pools] = dict.fromkeys(DIRECTIONS, (pool(asks, 2, 0.3), pool(ranked, 1, 0.6)))
    found = rank_ensemble(members, as_set(6, 6), weights=[0.3, 0.7], combination=combination, pools=pools, depth=6)
    for direction in DIRECTIONS:
        assert found[direction].top_indices_QK.tolist() == [list(range(6))] * 6
        assert found[direction].positive_ranks_P.tolist() == (found[direction].positive_indices_P + 1).tolist()


def test_ranks_of_a_row() -> None:
    """Ties by index, -0 equal to 0, and the order of negative numbers."""
    scores = torch.tensor([[0.0, -0.0, -1.5, 2.0, -0.25, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, -torch.inf]])
    ranks = (1 / reciprocal_ranks(scores) - 60).round().long()
    assert ranks.tolist() == [[2, 3, 6, 1, 5, 4], [1, 2, 3, 4, 5, 6]]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40))
def test_ranks_of_any_row(scores: list[float]) -> None:
    ranks = (1 / reciprocal_ranks(torch.tensor([scores], dtype=torch.float32)) - 60).round().long()
    assert ranks[0].tolist() == ranks_of(scores)


def test_equal_sums_of_reciprocal_ranks_stay_equal() -> None:
    """Two members that order two items each the other way round: equal sums, so the lower index first, in either order of the members."""
    one = Views.plain(unit(np.array([[1.0, 0.0], [0.0, 1.0]])))
    asks = [Views.plain(unit(np.array([row, row]))) for row in ([2.0, 1.0], [1.0, 2.0])]
    members = [EnsembleMember(one, captions, 10.0, 0.0, CPU) for captions in asks]
    for these in (members, members[::-1]):
        found = rank_ensemble(these, as_set(2, 2), combination="reciprocal-rank", depth=2)["text_to_image"]
        assert found.top_indices_QK.tolist() == [[0, 1], [0, 1]]
        assert found.top_scores_QK[0, 0] == found.top_scores_QK[0, 1] == np.float32((1 / 61 + 1 / 62) / 2)


@pytest.mark.parametrize(("scale", "bias"), [(0.0, 0.0), (float("inf"), 0.0), (1.0, float("nan"))])
def test_a_member_without_a_scale_or_a_bias_is_refused(scale: float, bias: float) -> None:
    good = made_up(1, 4, 6)
    with pytest.raises(UserError, match="member 2: expected a scale above 0"):
        rank_ensemble([good, EnsembleMember(good.images, good.captions, scale, bias, CPU)], as_set(4, 6), depth=3)


def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    """Every mixture of two members, over gloo."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.unit.rerank.combine.ensemble_worker"]
    jobs = [[str(tmp_path), str(rank), str(world_size)] for world_size in (1, 2) for rank in range(world_size)]
    started = [subprocess.Popen([*command, *job], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for job in jobs]
    try:
        for process in started:
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert len(alone) == len(mixtures(2)) and alone == first == second

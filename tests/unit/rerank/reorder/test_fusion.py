"""rerank/reorder/fusion.py against loops over queries, and what weights must and must not do."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.search.ranking import DIRECTIONS
from rerank.reorder.fusion import WEIGHTS, Fusion, Units, choose_weight, deviation, fused
from rerank.reorder.reorder import rerank
from tests.unit.rerank.combine.drawn_searches import Drawn, made, searches, unhurried


def unit_by_hand(rows: list[list[float]]) -> float:
    """Root of the mean variance within a row."""
    return fmean(fmean((x - fmean(row)) ** 2 for x in row) for row in rows) ** 0.5


@unhurried
@given(searches())
def test_units_are_the_spread_within_queries(drawn: Drawn) -> None:
    for direction in DIRECTIONS:
        heads = [drawn.head(direction, query) for query in range(drawn.first[direction].num_queries)]
        units = Units.of(drawn.first[direction], drawn.scores(), drawn.top_k)
        assert units.first == pytest.approx(unit_by_hand([[head[1] for head in row] for row in heads]), rel=1e-6, abs=1e-12)
        assert units.pair == pytest.approx(unit_by_hand([[head[2] for head in row] for row in heads]), rel=1e-6, abs=1e-12)


def test_a_part_without_spread_has_no_unit_and_no_say() -> None:
    assert deviation(np.full((3, 4), 0.1, dtype=np.float32)) == 0.0
    assert deviation(np.array([[0.1] * 3, [7.7] * 3])) == 0.0, "offsets between queries are no spread"
    assert fused(np.array([5.0, 1.0]), np.array([0.1, 0.2]), 2.0, Units(pair=0.0, first=0.1)).tolist() == [2.0, 4.0]
    assert fused(np.array([5.0, 1.0]), np.array([0.1, 0.1]), 2.0, Units(pair=2.0, first=0.0)).tolist() == [2.5, 0.5]


@unhurried
@given(searches(), st.sampled_from(WEIGHTS))
def test_ranking_equals_a_loop_over_queries(drawn: Drawn, weight: float) -> None:
    units = {d: Units.of(drawn.first[d], drawn.scores(), drawn.top_k) for d in DIRECTIONS}
    for direction, first in drawn.first.items():
        found, unit = Fusion(weight, units).rank(first, drawn.scores(), drawn.top_k), units[direction]
        for query in range(first.num_queries):
            head = drawn.head(direction, query)
            values = [(m / unit.pair if unit.pair else 0.0) + weight * (f / unit.first if unit.first else 0.0) for _, f, m, _ in head]
            order = sorted(range(drawn.top_k), key=lambda place: (-values[place], place))
            rest = first.top_indices_QK[query, drawn.top_k :].tolist()
            items = [head[place][0] for place in order] + rest
            assert found.top_indices_QK[query].tolist() == items
            np.testing.assert_allclose(found.top_scores_QK[query, : drawn.top_k], [values[place] for place in order], rtol=1e-6)
            right = [place + 1 for place, item in enumerate(items) if item in rights(drawn, direction, query)]
            assert found.best_ranks()[query] == right[0]


def rights(drawn: Drawn, direction: str, query: int) -> set[int]:
    row = drawn.right_IC[query] if direction == "image_to_text" else drawn.right_IC[:, query]
    return set(np.flatnonzero(row).tolist())


@unhurried
@given(searches())
def test_weight_0_is_the_cross_encoder_alone_and_a_vast_one_the_first_stage(drawn: Drawn) -> None:
    units = {d: Units.of(drawn.first[d], drawn.scores(), drawn.top_k) for d in DIRECTIONS}
    for direction, first in drawn.first.items():
        if units[direction].pair:
            alone = rerank(first, drawn.scores(), drawn.top_k)
            assert np.array_equal(Fusion(0.0, units).rank(first, drawn.scores(), drawn.top_k).top_indices_QK, alone.top_indices_QK)
        vast = Fusion(2.0**40, units).rank(first, drawn.scores(), drawn.top_k)
        kept = np.take_along_axis(first_scores(drawn, direction), vast.top_indices_QK, axis=1)
        assert (np.diff(kept[:, : drawn.top_k], axis=1) <= 0).all(), "equal ones aside, the first stage's order"


def first_scores(drawn: Drawn, direction: str) -> np.ndarray:
    """The first stage's score of every item, by index."""
    ranking = drawn.first[direction]  # type: ignore[index]
    scores = np.empty_like(ranking.top_scores_QK)
    np.put_along_axis(scores, ranking.top_indices_QK, ranking.top_scores_QK, axis=1)
    return scores


@unhurried
@given(searches(), st.sampled_from(WEIGHTS), st.sampled_from([0.25, 8.0]), st.sampled_from([-3.0, 5.0]))
def test_neither_the_scale_of_a_score_nor_an_offset_has_a_say(drawn: Drawn, weight: float, scale: float, offset: float) -> None:
    """Powers of two and short fractions, which lose no bit."""
    other = replace(drawn, match_IC=drawn.match_IC * np.float32(scale) + np.float32(offset))
    for direction, first in drawn.first.items():
        found = [Fusion(weight, {direction: Units.of(first, d.scores(), d.top_k)}).rank(first, d.scores(), d.top_k) for d in (drawn, other)]
        values = [ranking.top_scores_QK[:, : drawn.top_k] for ranking in found]
        shift = float(np.mean(values[1] - values[0]))
        np.testing.assert_allclose(values[1], values[0] + shift, rtol=1e-5, atol=1e-4)


@unhurried
@given(searches())
def test_the_weight_chosen_is_the_best_and_of_equal_ones_the_smallest(drawn: Drawn) -> None:
    chosen = choose_weight(drawn.first, drawn.scores(), drawn.top_k)
    wins = {}
    for weight in WEIGHTS:
        fusion = Fusion(weight, chosen.fusion.units)
        ranks = {d: fusion.rank(drawn.first[d], drawn.scores(), drawn.top_k).best_ranks() for d in DIRECTIONS}
        wins[weight] = round(fmean(fmean((ranks[d] == 1).tolist()) for d in DIRECTIONS), 9)
        assert all(np.array_equal(chosen.ranks[weight][d], ranks[d]) for d in DIRECTIONS)
    assert chosen.fusion.weight == min(weight for weight in WEIGHTS if wins[weight] == max(wins.values()))
    assert list(chosen.ranks) == list(WEIGHTS)


def test_it_helps_where_each_is_right_in_its_own_way() -> None:
    """Two noisy judges of 40 images: the sum knows more than either, and more than none is chosen."""
    drawn = made(3, 40, 40, 8, 12)
    chosen = choose_weight(drawn.first, drawn.scores(), 12)
    mean = {weight: fmean(float((ranks[d] == 1).mean()) for d in DIRECTIONS) for weight, ranks in chosen.ranks.items()}
    assert chosen.fusion.weight > 0 and mean[chosen.fusion.weight] > mean[0.0] + 0.02

"""rerank/combine/pooling.py and the searches of rerank/combine/expansion_effects.py: what is tried, against dense matrices, and what is
taken."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.search.ranking import Direction
from rerank.combine.expansion_effects import ranks_of_each_view
from rerank.combine.pooling import WEIGHTS, Side, ViewSearch, best_pool, choose_pool, direction_of, pools_at
from rerank.combine.rules import POOLINGS, Combination, Pooling
from rerank.combine.tuning import Tried
from rerank.combine.views import EnsembleMember, LateFusion, Pool, Views
from tests.unit.rerank.combine.drawn_searches import unhurried
from tests.unit.rerank.combine.member_sets import ALONE, best_ranks, caption_set, member, pooled

SIDES: tuple[Side, ...] = ("captions", "images", "candidates")


def one_member(side: Side, views: int = 3, view_noise: float = 0.9) -> EnsembleMember:
    return member(caption_set(20), 1, views=views, view_noise=view_noise, side="captions" if side == "captions" else "images")


def ranks_of(point: Tried[Pool | None]) -> np.ndarray:
    """In the one direction that changes."""
    (ranks_Q,) = point.ranks.values()
    return ranks_Q


def expected_ranks(one: EnsembleMember, side: Side, pool: Pool | None, only: int | None = None) -> np.ndarray:
    """By a dense matrix."""
    dataset = caption_set(20)
    asks, others = (one.captions, one.images) if side == "captions" else (one.images, one.captions)
    scores = pooled(asks, others.vectors_ND, pool, one.scale, only)
    return best_ranks(dataset, scores.T if side == "candidates" else scores, direction_of(side))


@pytest.mark.parametrize("side", SIDES)
def test_every_pool_is_what_a_dense_matrix_says_and_the_best_is_taken(side: Side) -> None:
    one = one_member(side)
    choice = choose_pool(ViewSearch([one], ALONE, caption_set(20), side))
    poolings = POOLINGS[:3] if side == "candidates" else POOLINGS
    assert [point.setting for point in choice.tried] == [None, *(Pool(p, n, w) for p in poolings for n in (1, 2, 3) for w in WEIGHTS)]
    for point in choice.tried:
        assert ranks_of(point).dtype == np.int64
        if point.setting is None or point.setting.pooling != "reciprocal-rank":  # whose few different sums float32 may order otherwise
            assert np.array_equal(ranks_of(point), expected_ranks(one, side, point.setting)), point.setting
    means = [float(np.mean(ranks_of(point) == 1)) for point in choice.tried]
    taken = next(mean for mean, point in zip(means, choice.tried, strict=True) if point.setting == choice.setting)
    assert taken == max(means) > means[0] and choice.setting is not None, "views through noise of their own know more"


def test_views_that_are_the_item_itself_stay_off() -> None:
    one = one_member("captions")
    views = one.captions
    counts = np.diff(views.offsets)
    same = Views(views.vectors_ND, np.repeat(views.vectors_ND, counts, axis=0), views.offsets)
    members = [EnsembleMember(one.images, same, one.scale, one.bias, one.device)]
    choice = choose_pool(ViewSearch(members, ALONE, caption_set(20), "captions"), ["max"])
    assert choice.setting is None and len(choice.tried) == 1 + 3 * 4


def test_without_views_off_is_all_that_is_tried() -> None:
    choice = choose_pool(ViewSearch([one_member("captions", views=0)], ALONE, caption_set(20), "captions"))
    assert choice.setting is None and [point.setting for point in choice.tried] == [None]


def test_numbers_are_1_2_4_and_all() -> None:
    choice = choose_pool(ViewSearch([one_member("captions", views=6)], ALONE, caption_set(20), "captions"), ["mean"])
    assert sorted({point.setting.number for point in choice.tried if point.setting}) == [1, 2, 4, 6]


def test_ranks_fuse_only_where_the_side_asks_and_with_other_ranks_only() -> None:
    def usable(side: Side, num_members: int, combination: Combination) -> list[Pooling]:
        return ViewSearch([one_member(side)] * num_members, LateFusion(combination, (1.0,)), caption_set(20), side).poolings

    assert usable("captions", 1, "logits") == usable("images", 2, "reciprocal-rank") == list(POOLINGS)
    assert usable("captions", 2, "logits") == usable("candidates", 1, "logits") == list(POOLINGS[:3])


def test_each_side_changes_its_own_direction() -> None:
    pool = Pool("max", 1, 0.5)
    expected: dict[Side, dict[Direction, tuple[Pool | None, Pool | None]]] = {
        "captions": {"text_to_image": (pool, None)},
        "images": {"image_to_text": (pool, None)},
        "candidates": {"text_to_image": (None, pool)},
    }
    assert {side: pools_at(side, pool) for side in SIDES} == expected


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("pooling", POOLINGS[:3])
def test_a_view_alone_is_joined_alone(side: Side, pooling: str) -> None:
    """Of items with fewer views, and with none, nothing joins."""
    one, pool = one_member(side), Pool(pooling, 3, 0.75)  # type: ignore[arg-type]
    found = ranks_of_each_view(ViewSearch([one], ALONE, caption_set(20), side), pool)
    assert len(found) == 3 == ViewSearch([one], ALONE, caption_set(20), side).most_views
    for number, ranks_Q in enumerate(found):
        assert np.array_equal(ranks_Q, expected_ranks(one, side, pool, only=number))
    assert len(ranks_of_each_view(ViewSearch([one], ALONE, caption_set(20), side), Pool("max", 2, 0.75))) == 2
    assert len({ranks_Q.tobytes() for ranks_Q in found}) == 3, "the views are not the same"


def test_at_most_eight_views_are_looked_at_alone() -> None:
    one = one_member("captions", views=10)
    assert len(ranks_of_each_view(ViewSearch([one], ALONE, caption_set(20), "captions"), Pool("max", 10, 1.0))) == 8


@st.composite
def tried_pools(draw: st.DrawFn) -> list[Tried[Pool | None]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share, number = draw(st.sampled_from([0.02, 0.3, 0.9])), draw(st.integers(1, 5))
    pools = [Pool(pooling, count, weight) for pooling in ("max", "mean") for count in (1, 2, 4) for weight in WEIGHTS]  # type: ignore[arg-type]
    return [Tried(pool, {"text_to_image": np.where(rng.random(number) < share, 1, 2)}) for pool in (None, *pools)]


@unhurried
@given(tried_pools())
def test_of_equally_good_pools_off_then_the_smallest_weight_then_fewest_views_then_the_first_pooling(tried: list[Tried]) -> None:
    def wins(point: Tried[Pool | None]) -> Fraction:
        return Fraction(int((ranks_of(point) == 1).sum()), len(ranks_of(point)))

    best, most = best_pool(tried), max(map(wins, tried))
    rivals = [point.setting for point in tried if wins(point) == most]
    assert best in rivals
    if None in rivals:
        assert best is None
        return
    assert best is not None
    pools = [pool for pool in rivals if pool is not None]
    assert best.weight == min(pool.weight for pool in pools)
    pools = [pool for pool in pools if pool.weight == best.weight]
    assert best.number == min(pool.number for pool in pools)
    assert best.pooling == ("max" if Pool("max", best.number, best.weight) in pools else "mean")

"""rerank/combine/pooling.py and the searches of rerank/combine/expansion_effects.py: what is tried, against dense matrices, and what is
taken."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.search.ranking import Direction
from rerank.combine.expansion_effects import ranks_of_each_view
from rerank.combine.pooling import WEIGHTS, Side, TriedPool, best_pool, choose_pool, direction_of, most_views, pools_at, usable_poolings
from rerank.combine.views import POOLINGS, EnsembleMember, Pool, Views
from tests.unit.rerank.combine.drawn_searches import unhurried
from tests.unit.rerank.combine.member_sets import best_ranks, caption_set, member, pooled

SIDES: tuple[Side, ...] = ("captions", "images", "candidates")


def one_member(side: Side, views: int = 3, view_noise: float = 0.9) -> EnsembleMember:
    return member(caption_set(20), 1, views=views, view_noise=view_noise, side="captions" if side == "captions" else "images")


def expected_ranks(one: EnsembleMember, side: Side, pool: Pool | None, only: int | None = None) -> np.ndarray:
    """By a dense matrix."""
    dataset = caption_set(20)
    asks, others = (one.captions, one.images) if side == "captions" else (one.images, one.captions)
    scores = pooled(asks, others.vectors_ND, pool, one.scale, only)
    return best_ranks(dataset, scores.T if side == "candidates" else scores, direction_of(side))


@pytest.mark.parametrize("side", SIDES)
def test_every_pool_is_what_a_dense_matrix_says_and_the_best_is_taken(side: Side) -> None:
    one = one_member(side)
    choice = choose_pool([one], None, "logits", caption_set(20), side)
    poolings = POOLINGS[:3] if side == "candidates" else POOLINGS
    assert [point.pool for point in choice.tried] == [None, *(Pool(p, n, w) for p in poolings for n in (1, 2, 3) for w in WEIGHTS)]
    for point in choice.tried:
        assert point.ranks_Q.dtype == np.int64
        if point.pool is None or point.pool.pooling != "reciprocal-rank":  # whose few different sums float32 may order otherwise
            assert np.array_equal(point.ranks_Q, expected_ranks(one, side, point.pool)), point.pool
    means = [float(np.mean(point.ranks_Q == 1)) for point in choice.tried]
    taken = next(mean for mean, point in zip(means, choice.tried, strict=True) if point.pool == choice.pool)
    assert taken == max(means) > means[0] and choice.pool is not None, "views through noise of their own know more"


def test_views_that_are_the_item_itself_stay_off() -> None:
    one = one_member("captions")
    views = one.captions
    counts = np.diff(views.offsets)
    same = Views(views.vectors_ND, np.repeat(views.vectors_ND, counts, axis=0), views.offsets)
    choice = choose_pool(
        [EnsembleMember(one.images, same, one.scale, one.bias, one.device)], None, "logits", caption_set(20), "captions", ["max"]
    )
    assert choice.pool is None and len(choice.tried) == 1 + 3 * 4


def test_without_views_off_is_all_that_is_tried() -> None:
    choice = choose_pool([one_member("captions", views=0)], None, "logits", caption_set(20), "captions")
    assert choice.pool is None and [point.pool for point in choice.tried] == [None]


def test_numbers_are_1_2_4_and_all() -> None:
    choice = choose_pool([one_member("captions", views=6)], None, "logits", caption_set(20), "captions", ["mean"])
    assert sorted({point.pool.number for point in choice.tried if point.pool}) == [1, 2, 4, 6]


def test_a_member_of_weight_0_is_left_out() -> None:
    dataset, one = caption_set(20), one_member("captions")
    both = choose_pool([one, one_member("captions", views=5)], [1.0, 0.0], "logits", dataset, "captions", ["max"])
    alone = choose_pool([one], None, "logits", dataset, "captions", ["max"])
    assert both.pool == alone.pool and [p.pool for p in both.tried] == [p.pool for p in alone.tried]
    assert all(np.array_equal(a.ranks_Q, b.ranks_Q) for a, b in zip(both.tried, alone.tried, strict=True))


def test_ranks_fuse_only_where_the_side_asks_and_with_other_ranks_only() -> None:
    assert usable_poolings("captions", 1, "logits") == usable_poolings("images", 2, "reciprocal-rank") == list(POOLINGS)
    assert usable_poolings("captions", 2, "logits") == usable_poolings("candidates", 1, "logits") == list(POOLINGS[:3])


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
    found = ranks_of_each_view([one], None, "logits", caption_set(20), side, pool)
    assert len(found) == 3 == most_views([one], side)
    for number, ranks_Q in enumerate(found):
        assert np.array_equal(ranks_Q, expected_ranks(one, side, pool, only=number))
    assert len(ranks_of_each_view([one], None, "logits", caption_set(20), side, Pool("max", 2, 0.75))) == 2
    assert len({ranks_Q.tobytes() for ranks_Q in found}) == 3, "the views are not the same"


def test_at_most_eight_views_are_looked_at_alone() -> None:
    one = one_member("captions", views=10)
    assert len(ranks_of_each_view([one], None, "logits", caption_set(20), "captions", Pool("max", 10, 1.0))) == 8


@st.composite
def tried_pools(draw: st.DrawFn) -> list[TriedPool]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share, number = draw(st.sampled_from([0.02, 0.3, 0.9])), draw(st.integers(1, 5))
    pools = [Pool(pooling, count, weight) for pooling in ("max", "mean") for count in (1, 2, 4) for weight in WEIGHTS]  # type: ignore[arg-type]
    return [TriedPool(pool, np.where(rng.random(number) < share, 1, 2)) for pool in (None, *pools)]


@unhurried
@given(tried_pools())
def test_of_equally_good_pools_off_then_the_smallest_weight_then_fewest_views_then_the_first_pooling(tried: list[TriedPool]) -> None:
    def wins(point: TriedPool) -> Fraction:
        return Fraction(int((point.ranks_Q == 1).sum()), len(point.ranks_Q))

    best, most = best_pool(tried), max(map(wins, tried))
    rivals = [point.pool for point in tried if wins(point) == most]
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

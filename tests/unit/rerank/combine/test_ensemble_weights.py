"""rerank/combine/ensemble_weights.py: the grid of weights, what is searched, and which point is taken."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rerank.combine.ensemble_weights
from eval.search.ranking import DIRECTIONS
from rerank.combine.combine import rank_ensemble
from rerank.combine.ensemble_weights import best_weights, choose_ensemble, simplex
from rerank.combine.rules import COMBINATIONS
from rerank.combine.tuning import Tried
from rerank.combine.views import EnsembleMember, LateFusion
from tests.unit.rerank.combine.drawn_searches import unhurried
from tests.unit.rerank.combine.member_sets import best_ranks, caption_set, combined, member


@given(st.integers(1, 12))
def test_weights_sum_to_one_are_distinct_and_hold_the_corners_and_the_centre(num_members: int) -> None:
    points = simplex(num_members)
    assert len(set(points)) == len(points) <= 101
    for weights in points:
        assert len(weights) == num_members and min(weights) >= 0 and sum(weights) == pytest.approx(1, abs=1e-12)
    corners = [tuple(float(place == number) for place in range(num_members)) for number in range(num_members)]
    assert set(corners) <= set(points) and (1 / num_members,) * num_members in points
    assert points[0] == corners[0], "the first member alone comes first"


def test_two_members_have_steps_of_a_twentieth_and_three_of_a_tenth() -> None:
    assert simplex(2) == [((20 - n) / 20, n / 20) for n in range(21)]
    tenths = {(a / 10, b / 10, (10 - a - b) / 10) for a in range(11) for b in range(11 - a)}
    assert set(simplex(3)) - {(1 / 3, 1 / 3, 1 / 3)} == tenths


def test_every_point_is_what_a_dense_matrix_says_and_the_best_is_taken() -> None:
    dataset = caption_set(24)
    members = [member(dataset, 1), member(dataset, 2)]
    choice = choose_ensemble(members, dataset, COMBINATIONS)
    assert [point.setting for point in choice.tried] == [LateFusion(c, w) for c in COMBINATIONS for w in simplex(2)]
    means = []
    for point in choice.tried:
        scores = combined(members, point.setting.weights, point.setting.combination)
        expected = {d: best_ranks(dataset, scores[d], d) for d in DIRECTIONS}
        if point.setting.combination != "reciprocal-rank":  # sums of few different shares, which float32 and float64 may order otherwise
            for d in DIRECTIONS:
                assert point.ranks[d].dtype == np.int64 and np.array_equal(point.ranks[d], expected[d]), point.setting
        means.append(np.mean([np.mean(point.ranks[d] == 1) for d in DIRECTIONS]))
    taken = [p for p in choice.tried if p.setting == choice.setting]
    assert np.mean([np.mean(taken[0].ranks[d] == 1) for d in DIRECTIONS]) == pytest.approx(max(means))
    corners = [mean for mean, point in zip(means, choice.tried, strict=True) if max(point.setting.weights) == 1]
    assert max(means) > max(corners) + 0.02, "two that err each in its own way know more together"
    assert 0 < choice.setting.weights[0] < 1


def test_a_model_alone_is_searched_once_and_a_weight_of_0_is_no_member(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = caption_set(8)
    members, calls = [member(dataset, seed) for seed in (1, 2, 3)], []
    found = rank_ensemble(members[:1], dataset, depth=1)

    def watched(asked: Sequence[EnsembleMember], *arguments: Any, weights: Sequence[float], **options: Any) -> Any:
        calls.append(([next(n for n, one in enumerate(members) if one is each) for each in asked], tuple(weights)))
        return found

    monkeypatch.setattr(rerank.combine.ensemble_weights, "rank_ensemble", watched)
    choice = choose_ensemble(members, dataset, ["logits", "reciprocal-rank"])
    assert all(min(weights) > 0 and sum(weights) == pytest.approx(1) for _, weights in calls)
    inner = sum(min(weights) > 0 for weights in simplex(3))
    assert Counter(len(places) for places, _ in calls) == {1: 3, 2: 2 * 3 * 9, 3: 2 * inner}
    assert sorted(places for places, _ in calls if len(places) == 1) == [[0], [1], [2]]
    alone = [point for point in choice.tried if max(point.setting.weights) == 1]
    assert len(alone) == 6 and all(alone[n].ranks is alone[n + 3].ranks for n in range(3)), "both combinations share the corners"


def test_of_two_equal_models_the_first_alone_is_taken() -> None:
    dataset = caption_set(10)
    choice = choose_ensemble([member(dataset, 1), member(dataset, 1)], dataset, ["reciprocal-rank", "logits"])
    assert (choice.setting.weights, choice.setting.combination) == ((1.0, 0.0), "reciprocal-rank")


@st.composite
def tried_points(draw: st.DrawFn) -> list[Tried[LateFusion]]:
    """Every point of two combinations of three members, few of which are right in more queries than others."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.02, 0.3, 0.9]))

    def ranks(number: int) -> np.ndarray:
        return np.where(rng.random(number) < share, 1, 2)

    queries = {"image_to_text": draw(st.integers(1, 3)), "text_to_image": draw(st.integers(1, 3))}
    return [
        Tried(LateFusion(combination, weights), {d: ranks(queries[d]) for d in DIRECTIONS})
        for combination in ("reciprocal-rank", "logits")
        for weights in simplex(3)
    ]


@unhurried
@given(tried_points())
def test_of_equally_good_points_fewest_members_then_nearest_to_equal_then_the_first_combination(tried: list[Tried[LateFusion]]) -> None:
    def wins(point: Tried[LateFusion]) -> Fraction:
        return sum(Fraction(int((point.ranks[d] == 1).sum()), len(point.ranks[d])) for d in DIRECTIONS)  # type: ignore[return-value]

    def far(point: Tried[LateFusion]) -> Fraction:
        parts = [Fraction(weight).limit_denominator(30) for weight in point.setting.weights]
        return sum((part - Fraction(1, 3)) ** 2 for part in parts)  # type: ignore[return-value]

    best, most = best_weights(tried), max(map(wins, tried))
    rivals = [point for point in tried if wins(point) == most]
    assert best in [point.setting for point in rivals]
    fewest = min(sum(weight > 0 for weight in point.setting.weights) for point in rivals)
    rivals = [point for point in rivals if sum(weight > 0 for weight in point.setting.weights) == fewest]
    nearest = min(map(far, rivals))
    rivals = [point for point in rivals if far(point) == nearest]
    combination = "reciprocal-rank" if any(point.setting.combination == "reciprocal-rank" for point in rivals) else "logits"
    rivals = [point for point in rivals if point.setting.combination == combination]
    assert best is max(rivals, key=lambda point: point.setting.weights).setting, "and then more weight on the earlier members"

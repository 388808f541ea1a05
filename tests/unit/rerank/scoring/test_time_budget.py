"""rerank/scoring/time_budget.py: the work of every K counted, the pace measured by a clock of the test's own, the largest K that fits."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.errors import UserError
from eval.search.ranking import DIRECTIONS
from rerank.scoring.candidates import candidate_lists
from rerank.scoring.time_budget import Pace, fit_pace, measure_pace, pick_top_k, work_by_top_k
from tests.unit.rerank.combine.drawn_searches import Drawn, made, searches, unhurried


@unhurried
@given(searches(), searches())
def test_work_is_what_the_candidate_lists_hold(one: Drawn, other: Drawn) -> None:
    top_k = min(one.top_k, other.top_k)
    rankings = [*one.first.values(), *other.first.values()]
    images_T, pairs_T = work_by_top_k(rankings, top_k)
    lists = [candidate_lists(rankings, k) for k in range(1, top_k + 1)]
    assert images_T.tolist() == [each.num_images for each in lists]
    assert pairs_T.tolist() == [each.num_pairs for each in lists]


class Clockwork:
    """A scorer that takes 0.5 s a picture and 0.25 s a caption of a clock that it moves itself; its first score takes 100 s more."""

    name, fingerprint = "clockwork", "clockwork-1"

    def __init__(self) -> None:
        self.now, self.num_calls = 0.0, 0

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        self.now += 0.5 + 0.25 * len(captions) + (0 if self.num_calls else 100)
        self.num_calls += 1
        return np.zeros(len(captions), dtype=np.float32)


@pytest.mark.parametrize(("num_captions", "expected"), [(100, Pace(0.5, 0.25)), (20, Pace(0.5, 0.25)), (1, Pace(0.0, 0.75))])
def test_pace_is_measured_on_real_pictures_after_warming_up(memory_set, monkeypatch, num_captions: int, expected: Pace) -> None:
    scorer, dataset = Clockwork(), memory_set(5, [f"caption {n}" for n in range(num_captions)])
    monkeypatch.setattr(time, "perf_counter", lambda: scorer.now)
    assert measure_pace(scorer, dataset) == expected
    assert len(set(dataset.loaded)) == 3


def test_where_two_measurements_deny_a_line_the_pairs_bear_all() -> None:
    assert fit_pace(8, 0.5, 64, 1.06) == Pace(0.42, 0.01)
    assert fit_pace(8, 1.0, 64, 0.64) == Pace(0.0, 0.01), "the longer list was no slower"
    assert fit_pace(8, 0.1, 64, 6.4) == Pace(0.0, 0.1), "a picture does not take less than nothing"


@unhurried
@given(searches(), st.floats(0.01, 30), st.integers(1, 3))
def test_the_largest_k_that_fits_is_picked(drawn: Drawn, seconds: float, world_size: int) -> None:
    pace, rankings = Pace(0.5, 0.25), list(drawn.first.values())
    lists = {k: candidate_lists(rankings, k) for k in range(2, drawn.top_k + 1)}
    takes = {k: (0.5 * each.num_images + 0.25 * each.num_pairs) / world_size for k, each in lists.items()}
    fitting = [k for k in takes if takes[k] <= seconds]
    if not fitting:
        with pytest.raises(UserError, match=r"too few to rerank in: K = 2 needs \d+ pictures and \d+ pairs"):
            pick_top_k(rankings, pace, seconds, drawn.top_k, world_size=world_size)
        return
    found = pick_top_k(rankings, pace, seconds, drawn.top_k, world_size=world_size)
    assert found.top_k == max(fitting)
    assert (found.num_images, found.num_pairs) == (lists[found.top_k].num_images, lists[found.top_k].num_pairs)
    assert found.estimated_seconds == pytest.approx(takes[found.top_k])


def test_the_line_says_what_was_measured_and_what_was_picked() -> None:
    drawn = made(0, 5, 6, 4, 4)
    rankings = [drawn.first[direction] for direction in DIRECTIONS]
    found = pick_top_k(rankings, Pace(0.0125, 0.0042), 1000, 4)
    pictures, pairs = candidate_lists(rankings, 4).num_images, candidate_lists(rankings, 4).num_pairs
    seconds = pictures * 0.0125 + pairs * 0.0042
    assert str(found) == (
        f"1000 s to rerank in; measured 12.5 ms a picture and 4.20 ms a pair: K = 4, {pictures} pictures and {pairs} pairs, "
        f"about {seconds:.1f} s"
    )
    assert found.record() == {
        "seconds": 1000,
        "top_k": 4,
        "num_images": pictures,
        "num_pairs": pairs,
        "estimated_seconds": pytest.approx(seconds),
        "image_ms": 12.5,
        "pair_ms": pytest.approx(4.2),
    }

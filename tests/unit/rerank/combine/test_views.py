"""Views and how they pool into one vector, against arithmetic by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.combine.rules import POOLINGS
from rerank.combine.views import Pool, Views
from tests.unit.rerank.combine.ensemble_oracle import averaged, made_up, views_of


def three() -> Views:
    """Items with two further views, none, and one."""
    own = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    further = np.array([[0, 1], [1, 0], [0, -1]], dtype=np.float32)
    return Views(own, further, np.array([0, 2, 2, 3]))


def test_the_mean_by_hand() -> None:
    views = three()
    np.testing.assert_allclose(views.mean(1, 1.0)[0], [0.5**0.5, 0.5**0.5], atol=1e-7)
    np.testing.assert_allclose(views.mean(2, 1.0)[0], np.array([2, 1]) / 5**0.5, atol=1e-7)
    np.testing.assert_allclose(views.mean(2, 0.5)[0], np.array([5, 1]) / 26**0.5, atol=1e-7)  # half of (1, 0), half of (2, 1) / 3
    assert views.mean(2, 0.5)[1].tobytes() == views.vectors_ND[1].tobytes(), "without further views it stays what it is"


def test_views_that_cancel_out_leave_nothing() -> None:
    """Not a vector of rounding errors, blown up to length 1, nor one that is not a number."""
    assert three().mean(1, 1.0)[2].tolist() == [0.0, 0.0]


@given(st.integers(0, 99), st.integers(1, 12), st.integers(0, 4), st.sampled_from([0.25, 0.5, 1.0]))
def test_the_mean_of_any_views(seed: int, num: int, number: int, weight: float) -> None:
    views = made_up(seed, num, 1, most=4).images
    found = views.mean(number, weight)
    for item in range(num):
        np.testing.assert_allclose(found[item], averaged(views_of(views, item, Pool("mean", number, weight)), weight), atol=1e-6)


def test_the_mean_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    views = made_up(3, 11, 1, most=3).images
    whole = views.mean(2, 0.75)
    monkeypatch.setattr("rerank.combine.views._AVERAGED_AT_ONCE", 3)
    assert views.mean(2, 0.75).tobytes() == whole.tobytes()


def test_which_pools_change_something() -> None:
    views, plain = three(), Views.plain(three().vectors_ND)
    for pooling in POOLINGS:
        assert Pool(pooling, 1, 0.5).changes(views) and not Pool(pooling, 1, 0.5).changes(plain)
        assert not Pool(pooling, 0, 0.5).changes(views) and not Pool(pooling, 1, 0.0).changes(views)
    assert views.first(9).tolist() == [2, 0, 1] and views.first(1).tolist() == [1, 0, 1]

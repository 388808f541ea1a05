"""train/optim/update.py the learning rate: linear warm-up, then half a cosine."""

import math

import pytest

from train.optim.update import rate_factor


def test_warm_up_rises_by_equal_steps_to_the_peak() -> None:
    assert [rate_factor(step, 100, 4) for step in (1, 2, 3, 4, 5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_cosine_would_be_zero_one_step_after_the_last() -> None:
    assert rate_factor(101, 100, 10) == pytest.approx(0.0, abs=1e-15)
    assert 0 < rate_factor(100, 100, 10) < 1e-3
    assert rate_factor(56, 100, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))


def test_it_never_rises_after_the_warm_up() -> None:
    factors = [rate_factor(step, 37, 5) for step in range(5, 38)]
    assert factors == sorted(factors, reverse=True) and all(0 < factor <= 1 for factor in factors)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rate_factor(1, 1, 0) == 1.0 and rate_factor(1, 10, 0) == 1.0

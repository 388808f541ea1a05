"""Intervals and tests against enumeration, hand sums, and small simulations."""

import itertools

import numpy as np
import pytest

from eval.metrics.significance import ImageSums, holm, interval, resample_weights, sign_flip_p_values, verdict


def exact_p(differences: np.ndarray) -> float:
    observed = abs(differences.sum())
    sums = [abs(float(np.dot(signs, differences))) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return float(np.mean([value >= observed - 1e-12 for value in sums]))


@pytest.mark.parametrize("differences", [[1, 1, 1, 1, 1], [1, -1, 1, 1, 0, 2, 1], [0.2, 0.4, -0.1, 0.3, 0.3, 0.1, -0.2, 0.5, 0.1, 0.1]])
def test_sign_flips_equal_exhaustive_enumeration(differences: list[float]) -> None:
    column = np.array(differences)
    found = sign_flip_p_values(column[:, None])[0]
    expected = exact_p(column)
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 10_000) + 1e-4


def test_sign_flips_of_nothing() -> None:
    assert sign_flip_p_values(np.zeros((5, 3))).tolist() == [1.0, 1.0, 1.0]


def test_sign_flips_are_never_zero() -> None:
    assert sign_flip_p_values(np.ones((200, 1)))[0] == 1 / 10_001


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 and never falling."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_verdict() -> None:
    assert [verdict(0.1, 0.049), verdict(-0.1, 0.049), verdict(0.1, 0.05), verdict(0.0, 0.001)] == [
        "better",
        "worse",
        "no evidence",
        "no evidence",
    ]


def test_resamples_draw_as_many_images_as_there_are_and_the_same_each_time() -> None:
    weights = resample_weights(37, num_resamples=50)
    assert weights.shape == (50, 37) and (weights.sum(axis=1) == 37).all()
    assert np.array_equal(weights, resample_weights(37, num_resamples=50))
    assert len(np.unique(weights, axis=0)) == 50


def test_sums_per_image() -> None:
    sums = ImageSums.of(np.array([[1.0], [0.0], [1.0]]), np.array([0, 0, 2]), 3)
    assert sums.sums_IM.tolist() == [[1.0], [0.0], [1.0]] and sums.counts_I.tolist() == [2.0, 0.0, 1.0]
    assert sums.means().tolist() == pytest.approx([2 / 3])
    assert sums.resampled_means(np.array([[0.0, 1.0, 2.0]])).tolist() == [[1.0]]


def test_five_captions_of_one_image_are_not_five_witnesses() -> None:
    values = np.random.default_rng(0).integers(0, 2, (60, 1)).astype(np.float64)
    weights = resample_weights(60)
    once = interval(ImageSums.of(values, np.arange(60), 60).resampled_means(weights))
    five = interval(ImageSums.of(np.repeat(values, 5, axis=0), np.repeat(np.arange(60), 5), 60).resampled_means(weights))
    np.testing.assert_allclose(five, once, atol=1e-12)


def test_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).integers(0, 2, (400, 1)).astype(np.float64)
    low, high = interval(ImageSums.of(values, np.arange(400), 400).resampled_means(resample_weights(400)))[:, 0]
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert low < values.mean() < high


def test_level_of_the_test_under_no_difference() -> None:
    """150 experiments without a difference: about 5% fall under 0.05 (binomial, 0.1% to each side)."""
    generator = np.random.default_rng(2)
    differences = generator.normal(size=(60, 150))
    under = int((sign_flip_p_values(differences, num_permutations=1000) < 0.05).sum())
    assert 1 <= under <= 17

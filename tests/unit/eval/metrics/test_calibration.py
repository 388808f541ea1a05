"""eval/metrics/calibration.py: the isotonic curve is scikit-learn's, thresholds are those of a count by hand, intervals hold the truth."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from eval.metrics.calibration import (
    LEAST_PAIRS,
    PRECISIONS,
    CandidatePairs,
    calibrate,
    check_calibration,
    isotonic_points,
    probability_at,
    thresholds,
)
from eval.metrics.significance import resample_weights
from eval.search.ranking import Ranking

NUM_IMAGES, PER_IMAGE, TOP_K = 120, 2, 8


def drawn(seed: int, num_images: int = NUM_IMAGES) -> CandidatePairs:
    """Queries of images, whose candidates are relevant with probability sigmoid(2 (score - 1)); the scores of one image's queries lie
    together, and those of one candidate's."""
    random = np.random.default_rng(seed)
    query_N = np.repeat(np.arange(num_images * PER_IMAGE), TOP_K)
    image_Q = np.repeat(np.arange(num_images), PER_IMAGE)
    item_image_N = random.integers(0, num_images, len(query_N))
    of_query, of_item = 0.5 * random.normal(size=(2, num_images))
    scores_N = random.normal(size=len(query_N)) + of_query[image_Q[query_N]] + of_item[item_image_N]
    relevant_N = random.random(len(query_N)) < 1 / (1 + np.exp(-2 * (scores_N - 1)))
    return CandidatePairs(scores_N, relevant_N, query_N, image_Q, item_image_N, int(relevant_N.sum()))


@pytest.mark.parametrize("seed", range(8))
def test_the_curve_is_that_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores_N = random.normal(size=300).round(int(random.integers(0, 3)))  # ties
    relevant_N = random.random(300) < 1 / (1 + np.exp(-scores_N))
    points = isotonic_points(scores_N, relevant_N)
    everywhere = np.linspace(-5, 5, 777)
    peer = IsotonicRegression(out_of_bounds="clip").fit(scores_N, relevant_N)
    np.testing.assert_allclose(probability_at(points, everywhere), peer.predict(everywhere), atol=1e-12)
    assert (np.diff(points[:, 0]) > 0).all() and (np.diff(points[:, 1]) >= 0).all()
    said_N = probability_at(points, scores_N)
    assert said_N.mean() == pytest.approx(relevant_N.mean())


def test_pairs_of_a_ranking_are_its_first_candidates() -> None:
    """Two queries, two candidates each: the relevant item of the first is second, that of the second lies deeper."""
    ranking = Ranking(
        "text_to_image",
        np.array([[4, 1, 0], [2, 3, 1]]),
        np.array([[0.5, 0.25, 0.0], [0.75, 0.5, 0.25]], dtype=np.float32),
        np.array([0, 1, 3]),
        np.array([1, 1, 4]),
        np.array([2, 3, 5]),
    )
    pairs = CandidatePairs.of(ranking, 2, np.array([7, 9]), np.arange(10, 15))
    assert pairs.scores_N.tolist() == [0.5, 0.25, 0.75, 0.5] and pairs.relevant_N.tolist() == [False, True, False, False]
    assert pairs.image_N.tolist() == [7, 7, 9, 9] and pairs.item_image_N.tolist() == [14, 11, 12, 13] and pairs.num_relevant == 3


def counted(pairs: CandidatePairs, precision: float) -> float | None:
    """The threshold, score by score."""
    found = None
    for score in sorted(set(pairs.scores_N.tolist()), reverse=True):
        above = pairs.scores_N >= score
        if above.sum() >= LEAST_PAIRS and pairs.relevant_N[above].mean() >= precision:
            found = score
    return found


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_the_lowest_scores_that_reach_the_precision(seed: int) -> None:
    pairs = drawn(seed, 40)
    rows = thresholds(pairs, resample_weights(40, num_resamples=50))
    assert [row["precision"] for row in rows] == list(PRECISIONS)
    for row in rows:
        assert row["score"] == counted(pairs, row["precision"])
        if row["score"] is None:
            assert (row["ci95"], row["recall"], row["queries"]) == (None, 0.0, 0)
            continue
        above = pairs.scores_N >= row["score"]
        assert row["recall"] == (above & pairs.relevant_N).sum() / pairs.num_relevant
        assert row["queries"] == len(set(pairs.query_N[above].tolist()))


def test_what_is_never_reached_is_said_so() -> None:
    pairs = drawn(0)
    none = CandidatePairs(pairs.scores_N, np.zeros_like(pairs.relevant_N), pairs.query_N, pairs.image_Q, pairs.item_image_N, 1)
    assert [row["score"] for row in thresholds(none, resample_weights(NUM_IMAGES, num_resamples=20))] == [None] * 4
    few = CandidatePairs(np.array([3.0, 2.0, 1.0]), np.array([True, True, False]), np.arange(3), np.arange(3), np.arange(3), 2)
    assert [row["score"] for row in thresholds(few, resample_weights(3, num_resamples=20))] == [None] * 4  # three pairs tell nothing


def test_95_percent_intervals_hold_the_true_threshold() -> None:
    """The truth is that of a hundred times as many images; forty draws, three precisions. Not drawing candidates makes them too short, and
    at most twice as long as need be they are where pairs are nearly independent."""
    truth = {row["precision"]: row["score"] for row in thresholds(drawn(10_000, 12_000), np.ones((1, 12_000), dtype=np.uint16))}
    weights_SI = resample_weights(NUM_IMAGES, num_resamples=200)
    held, lengths, scores = [], [], []
    for seed in range(40):
        rows = thresholds(drawn(seed), weights_SI)[:3]
        scores.append([row["score"] for row in rows])
        for row in rows:
            assert row["score"] is not None
            low, high = (end if end is not None else np.inf for end in row["ci95"])
            held.append(low <= truth[row["precision"]] <= high)
            lengths.append(high - low)
    assert np.mean(held) >= 0.93, np.mean(held)
    needed = 2 * 1.96 * np.std(scores, axis=0).mean()
    assert 1 <= np.median(lengths) / needed <= 2, (np.median(lengths), needed)


def test_a_calibration_is_looked_at_on_other_pairs() -> None:
    fitted, other = drawn(1), drawn(2)
    weights_SI = resample_weights(NUM_IMAGES, num_resamples=200)
    found = calibrate(fitted, weights_SI)
    assert (found["pairs"], found["num_queries"], found["relevant_pairs"]) == (1920, 240, int(fitted.relevant_N.sum()))
    checked = check_calibration(found, other, weights_SI)
    assert sum(row["pairs"] for row in checked["bins"]) == 1920 and checked["error"] < 0.04
    for row in checked["bins"]:
        assert row["ci95"][0] <= row["relevant"] <= row["ci95"][1]
    for row in checked["thresholds"]:
        score = next(one["score"] for one in found["thresholds"] if one["precision"] == row["precision"])
        above = other.scores_N >= score
        assert row["found"] == other.relevant_N[above].mean() and row["answered"] == len(set(other.query_N[above].tolist())) / 240
    itself = check_calibration(found, fitted, weights_SI)
    assert itself["error"] < 1e-12  # why it is not looked at there

"""Nearest-neighbour normalisation against the formula in float64, on vectors whose float32 scores are exact."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.embedding_files import InMemoryRows
from eval.errors import NotFinite
from eval.manifest.manifest import ManifestImage
from eval.metrics.metrics import positive_ranks
from eval.search.nnn import gallery_means, nearest_means, rank_corrected
from eval.search.ranking import DIRECTIONS, Direction
from eval.search.retrieve import Embedded, find


def embedded(images_ID: np.ndarray, captions_CD: np.ndarray) -> Embedded:
    return Embedded(images_ID, captions_CD, 10.0, -5.0, 0.0, 0.0, torch.device("cpu"))


def dataset(num_images: int) -> RetrievalSet:
    images = [
        ManifestImage(f"{n:04d}", None, Path("x"), None, 1, None, [f"text {n}", f"text {n // 2} of two"], "") for n in range(num_images)
    ]
    return RetrievalSet(images, None, source="hand", split=None)


def sides(one: Embedded, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """(queries, gallery), float64."""
    found = one.images_ID.astype(np.float64), one.captions_CD.astype(np.float64)
    return found if direction == "image_to_text" else found[::-1]


@pytest.mark.parametrize(("seed", "number"), [(0, 1), (1, 2), (2, 8), (3, 64)])
def test_scores_and_ranks_are_those_of_the_formula(seed: int, number: int) -> None:
    """Vectors of few halves, k a power of two, alpha a quarter: every float32 number is exact, and many scores tie."""
    draws, num_images = np.random.default_rng(seed), 40
    data = dataset(num_images)
    one, bank = (
        embedded(*(draws.integers(-2, 3, (rows, 6)).astype(np.float32) / 2 for rows in (size, 2 * size))) for size in (num_images, 50)
    )
    for direction in DIRECTIONS:
        queries, gallery = sides(one, direction)
        nearest = -np.sort(-(gallery @ sides(bank, direction)[0].T), axis=1)[:, : min(number, 100)]
        used = nearest.shape[1]
        means = gallery_means(one, bank, direction, [number])[0]
        assert means == pytest.approx(nearest.mean(axis=1), abs=1e-12)
        correction = 0.25 * nearest.mean(axis=1) if used == number else 0.25 * means
        ranking = rank_corrected(one, data, {direction: correction}, 1000)[direction]
        exact = (queries @ gallery.T) - correction
        order = np.argsort(-exact.astype(np.float32), axis=1, kind="stable")
        relevant = np.zeros(exact.shape, dtype=bool)
        positives = data.positives(direction)
        relevant[positives.query_P, positives.indices_P] = True
        assert (ranking.top_indices_QK == order).all()
        assert (ranking.positive_ranks_P == positive_ranks(exact.astype(np.float32), relevant)[1]).all()
        assert ranking.top_scores_QK == pytest.approx(np.take_along_axis(exact, order, axis=1), abs=1e-6)


def test_by_hand() -> None:
    """Image 1 is near both references, by 1 and 0.5; image 0 near none. With k = 2 and alpha 1 it loses 0.75, and with it the query."""
    images, captions = np.float32([[1, 0], [0.5, 1]]), np.float32([[0.5, 0.5]] * 4)
    bank = embedded(np.float32([[1, 0]]), np.float32([[0, 1], [0, 0.5]]))
    one, data = embedded(images, captions), dataset(2)
    means = gallery_means(one, bank, "text_to_image", [1, 2])
    assert means.tolist() == [[0.0, 1.0], [0.0, 0.75]]
    assert find("model", one, data).rankings["text_to_image"].top_indices_QK[0].tolist() == [1, 0]
    found = rank_corrected(one, data, {"text_to_image": means[1]}, 10)["text_to_image"]
    assert found.top_indices_QK[0].tolist() == [0, 1] and found.top_scores_QK[0].tolist() == [0.5, 0.0]


def test_a_bank_smaller_than_k_gives_the_mean_of_all_of_it_and_skips_what_does_not_decode() -> None:
    gallery, bank = np.float32([[1, 0], [0, 1]]), np.float32([[1, 0], [0, 0], [0, 0.5]])
    found = nearest_means(InMemoryRows(gallery), InMemoryRows(bank), [1, 2, 100])
    assert found.tolist() == [[1.0, 0.5], [0.5, 0.25], [0.5, 0.25]]


def test_a_correction_that_is_no_number_is_refused() -> None:
    one = embedded(np.float32(np.eye(2)), np.float32(np.eye(4, 2)))
    with pytest.raises(NotFinite, match=r"1 correction vector\(s\) are not finite, at index \[1\]"):
        rank_corrected(one, dataset(2), {"text_to_image": np.array([0.0, np.nan])}, 10)

"""measure_embeddings: the figures of a score matrix, the intervals of a report, and what is refused."""

from typing import Any

import numpy as np
import pytest

from eval.errors import UserError
from eval.metrics.measurement import measure_embeddings
from eval.metrics.metrics import retrieval_metrics
from eval.search.ranking import DIRECTIONS


def drawn(num_images: int = 30) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Images in no order, with one to four captions each, vectors of any length, float16."""
    random = np.random.default_rng(0)
    ids = [f"image {number}" for number in random.permutation(num_images)]
    image_C = random.permutation(np.concatenate([np.arange(num_images), random.integers(0, num_images, 50)]))
    images = random.normal(size=(num_images, 8)) * random.uniform(0.1, 5, (num_images, 1))
    captions = images[image_C] / 3 + random.normal(size=(len(image_C), 8))
    return images.astype(np.float16), captions.astype(np.float16), ids, [ids[image] for image in image_C]


def test_figures_are_those_of_the_matrix() -> None:
    images, captions, ids, own = drawn()
    found = measure_embeddings(images, captions, ids, own)
    wide = [vectors.astype(np.float64) for vectors in (images, captions)]
    unit = [(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32) for vectors in wide]
    scores, relevant = unit[0] @ unit[1].T, np.array(ids)[:, None] == np.array(own)[None, :]
    for direction, expected in zip(DIRECTIONS, (retrieval_metrics(scores, relevant), retrieval_metrics(scores.T, relevant.T)), strict=True):
        for name, value in expected.items():
            assert found[direction][name] == pytest.approx(value, abs=1e-12), (direction, name)
            low, high = found[direction]["ci95"][name]
            assert low <= value <= high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.ones((3, 4))}, r"images: expected a vector for each of 2 ids, an array of shape \(2, width\); found shape \(3, 4\)"),
        ({"captions": np.ones(3)}, "captions: expected a vector for each of 3 ids"),
        ({"captions": np.ones((3, 5))}, "expected vectors of one width, found 4 of images and 5 of captions"),
        ({"image_ids": ["a", "a"]}, "image_ids: expected each once, found 1 different ones of 2"),
        ({"own": ["a", "b", "c"]}, "1 are no image's id, e.g. \\['c'\\]"),
        ({"own": ["a", "a", "a"]}, "1 images have no caption, e.g. \\['b'\\]"),
        ({"images": np.zeros((2, 4))}, "2 of 2 vectors are all zeros"),
        ({"captions": np.full((3, 4), np.nan)}, "3 gallery vector\\(s\\) are not finite"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"images": np.ones((2, 4)), "captions": np.ones((3, 4)), "image_ids": ["a", "b"], "own": ["a", "b", "b"]}
    with pytest.raises(UserError, match=message):
        measure_embeddings(*(given | change).values())

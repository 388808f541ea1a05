"""train/loss/positives.py: the pairs of a block are those `RetrievalSet.is_positive` would mark in the matrix."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_job import SmallWorld, load
from train.data.batches import TruePairs
from train.data.caption_pool import CaptionPool


def marked(pairs: tuple[np.ndarray, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    matrix = np.zeros(shape, dtype=np.int64)
    np.add.at(matrix, pairs, 1)
    return matrix


@settings(max_examples=40, deadline=None)
@given(data=st.data(), block=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_block_of_every_process_is_the_matrix(small_world: SmallWorld, data: st.DataObject, block: int, seed: int) -> None:
    dataset = load(small_world.manifest)
    draws = np.random.default_rng(seed)
    images = draws.permutation(dataset.num_images)[: data.draw(st.integers(1, 20))]
    texts = [draws.integers(dataset.num_captions, size=data.draw(st.integers(0, 15))) for _ in range(2)]
    positives = TruePairs(CaptionPool(dataset)).of_batch(images, texts)
    for owner, captions in enumerate(texts):
        expected = dataset.is_positive(images[:, None], dataset.caption_hash_C[captions][None, :])
        for first in range(0, len(images), block):
            for left in range(0, len(captions), block):
                rows, columns = slice(first, min(first + block, len(images))), slice(left, min(left + block, len(captions)))
                found = marked(positives.pairs(rows, owner, columns), expected[rows, columns].shape)
                np.testing.assert_array_equal(found, expected[rows, columns])  # a pair named twice would count 2

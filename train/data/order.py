"""Which images, and which caption of each, a step trains on: functions of (seed, step) alone."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet

# Streams of random numbers, so that none of them is ever the same as another.
ORDER, CAPTION, CROP, REPLACEMENT, COMPOSITION = range(5)


def generator(seed: int, stream: int, *keys: int) -> np.random.Generator:
    """A counter-based generator named by its keys (Philox through numpy's SeedSequence): the same keys, the same numbers, anywhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, *keys])))


@dataclass(frozen=True)
class BatchOrder:
    """Which images step s trains on, of the whole batch over all processes; steps count from 1."""

    num_images: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the images."""
        return self.num_images // self.batch_size

    def num_epochs(self, step: int) -> float:
        """Passes over the images after `step` steps."""
        return step / self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that a step belongs to."""
        return (step - 1) // self.steps_per_epoch

    def images(self, step: int) -> np.ndarray:
        """Image indices of a step's whole batch, int64 of shape (B,), no image twice."""
        start = (step - 1) % self.steps_per_epoch * self.batch_size
        return self.permutation(self.epoch(step))[start : start + self.batch_size].astype(np.int64)

    def permutation(self, epoch: int) -> np.ndarray:
        """All images in the order of an epoch, of shape (num_images,); int32 where that suffices, since each process holds it."""
        return _permutation(self.num_images, self.seed, epoch)

    def step_record(self, step: int) -> dict[str, Any]:
        """Nothing: the batch is a slice of the order."""
        return {}

    def window_record(self) -> dict[str, Any]:
        """Nothing: no batch follows from a table."""
        return {}


@lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    order = generator(seed, ORDER, epoch).permutation(num_images)
    return order.astype(np.int32) if num_images < 2**31 else order


def chosen_caption(dataset: RetrievalSet, image: int, epoch: int, seed: int) -> int:
    """The index of the caption used for an image in an epoch: epochs cycle through its captions in a random order."""
    return chosen_captions(dataset, image, epoch, seed, 1)[0]


def chosen_captions(dataset: RetrievalSet, image: int, epoch: int, seed: int, most: int) -> list[int]:
    """The indices of at most `most` different captions used for an image in an epoch: epochs cycle through its captions in a random order.

    Where `most` does not divide their number, each cycle leaves some out, others each time.
    """
    start, stop = int(dataset.caption_offsets[image]), int(dataset.caption_offsets[image + 1])
    count = stop - start
    if count <= most:
        return list(range(start, stop))
    epochs = count // most
    order = generator(seed, CAPTION, image, epoch // epochs).permutation(count)
    first = epoch % epochs * most
    return [start + int(caption) for caption in order[first : first + most]]

"""Batches of seeds and their hard images: images whose turn it is, and beside them the images the model takes for their captions.

A step of B images begins with S = B // (1 + H) seeds, the next images of the order, and brings for the caption each seed speaks with up
to H of that caption's own hardest images. Every image is a seed once per epoch, whatever is mined, so the seeds of a step follow from
(seed, step) alone. Places that nothing was mined for go to the images whose turn as seeds comes next, never to random ones, and are
counted. Shape letters: B images of the whole batch, S seeds, N rows of the table.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from train.data.negatives import Negatives
from train.data.order import BatchOrder, chosen_caption


@dataclass(frozen=True)
class AnchorOrder:
    """Which images are the seeds of a step: whole batches up to start_step, then num_seeds a step, from where the order then stands."""

    base: BatchOrder
    start_step: int
    num_seeds: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the images as seeds."""
        return self.base.num_images // self.num_seeds

    def num_epochs(self, step: int) -> float:
        """Passes over the images as seeds, after `step` steps."""
        before = min(step, self.start_step)
        return before / self.base.steps_per_epoch + (step - before) / self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """The epoch, from 0, whose permutation the seeds of a step come from."""
        return self._place(step)[0]

    def images(self, step: int) -> np.ndarray:
        """Image indices of the seeds, int64 of shape (S,), or of shape (B,) up to start_step."""
        if step <= self.start_step:
            return self.base.images(step)
        epoch, start = self._place(step)
        return self.base.permutation(epoch)[start : start + self.num_seeds]

    def following(self, step: int, count: int) -> np.ndarray:
        """The images whose turn comes behind a step's seeds, at most `count`: to the end of the epoch's order, then from its start."""
        epoch, start = self._place(step)
        num_seeds = self.base.batch_size if step <= self.start_step else self.num_seeds
        places = start + num_seeds + np.arange(min(count, self.base.num_images - num_seeds))
        return self.base.permutation(epoch)[places % self.base.num_images]

    def _place(self, step: int) -> tuple[int, int]:
        """(epoch, place of the first seed in its permutation)."""
        base = self.base
        if step <= self.start_step:
            return base.epoch(step), (step - 1) % base.steps_per_epoch * base.batch_size
        epoch, num_begun = divmod(self.start_step, base.steps_per_epoch)
        first = num_begun * base.batch_size
        num_left = (base.num_images - first) // self.num_seeds  # steps until the epoch that was under way at start_step is through
        number = step - self.start_step - 1
        if number < num_left:
            return epoch, first + number * self.num_seeds
        further, place = divmod(number - num_left, self.steps_per_epoch)
        return epoch + 1 + further, place * self.num_seeds


Turns = BatchOrder | AnchorOrder
"""Whose turn it is at each step, whatever is mined: all images of a batch, or its seeds."""


@dataclass(frozen=True)
class HardImages:
    """The hardest images of every caption, CSR: those of caption c are images_N[offsets[c]:offsets[c + 1]], hardest first."""

    offsets: np.ndarray
    images_N: np.ndarray

    @classmethod
    def of_table(cls, table: Negatives, num_captions: int) -> "HardImages":
        """The pairs of a table by caption, where the table has them by image; those that were relabelled are not hard, but true."""
        images_N, captions_N, ranks_N = (column[table.is_negative_N] for column in (table.image_N, table.captions_N, table.ranks_N))
        counts = np.bincount(captions_N, minlength=num_captions)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), images_N[np.lexsort((ranks_N, captions_N))])

    def of(self, caption: int) -> np.ndarray:
        """Image indices mined for a caption, int64, possibly none."""
        return self.images_N[self.offsets[caption] : self.offsets[caption + 1]]


@dataclass(frozen=True)
class AnchoredBatch:
    """A batch in three parts: seeds, then hard images that were not among them already, then what filled it up."""

    images_B: np.ndarray
    num_seeds: int
    num_hard_images: int

    @property
    def num_filled(self) -> int:
        """Places that nothing was mined for, or whose hard image was in the batch already."""
        return len(self.images_B) - self.num_seeds - self.num_hard_images


def compose_anchored(seeds_S: np.ndarray, hard: list[np.ndarray], following: np.ndarray, batch_size: int) -> AnchoredBatch:
    """Seeds, their hard images in the order of the seeds, and the next images of the order until the batch is full; no image twice.

    Args:
        hard: for each seed the hardest images of its caption, together no more than there is room for.
        following: other images in the order in which their turn comes; twice the batch is always enough.
    """
    images = dict.fromkeys(seeds_S.tolist())  # a set that keeps its order
    for row in hard:
        images.update(dict.fromkeys(row.tolist()))
    num_hard = len(images) - len(seeds_S)
    for image in following.tolist():
        if len(images) == batch_size:
            break
        images.setdefault(image)
    return AnchoredBatch(np.fromiter(images, np.int64, len(images)), len(seeds_S), num_hard)


class HardImageOrder:
    """The order of steps whose batches hold seeds and their hard images.

    Args:
        hard: None before the first mining.
    """

    def __init__(self, seeds: AnchorOrder, dataset: RetrievalSet, hard: HardImages | None) -> None:
        self._seeds, self._dataset, self._hard = seeds, dataset, hard

    @property
    def seed(self) -> int:
        """Seed of captions, crops and replacements."""
        return self._seeds.base.seed

    def epoch(self, step: int) -> int:
        """The epoch, from 0, whose permutation the seeds of a step come from."""
        return self._seeds.epoch(step)

    def batch(self, step: int) -> AnchoredBatch:
        """A step's whole batch with its parts.

        Raises:
            ValueError: the step lies behind start_step, and nothing is mined yet.
        """
        seeds, batch_size = self._seeds.images(step), self._seeds.base.batch_size
        if step <= self._seeds.start_step:
            return AnchoredBatch(seeds, len(seeds), 0)
        if self._hard is None:
            raise ValueError(f"step {step} wants hard images, and none are mined yet")
        captions = [chosen_caption(self._dataset, int(image), self.epoch(step), self.seed) for image in seeds]
        hard = [self._hard.of(caption) for caption in captions]
        return compose_anchored(seeds, hard, self._seeds.following(step, 2 * batch_size), batch_size)

    def images(self, step: int) -> np.ndarray:
        """Image indices of a step's whole batch, int64 of shape (B,), no image twice."""
        return self.batch(step).images_B

    def step_record(self, step: int) -> dict[str, Any]:
        """Rows that are there as seeds, as hard images, and because nothing was mined for their place."""
        batch = self.batch(step)
        return {"num_seeds": batch.num_seeds, "num_hard_images": batch.num_hard_images, "num_filled": batch.num_filled}

    def window_record(self) -> dict[str, Any]:
        """Seeds a step, and steps until each image was a seed once."""
        return {"num_seeds": self._seeds.num_seeds, "steps_per_epoch": self._seeds.steps_per_epoch}

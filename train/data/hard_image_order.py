"""Batches of anchors and their hard images: the next images of the order, and the images that the model retrieves for their captions.

A step of B images begins with A = B // (1 + H) anchors, the next images of the order, and adds up to H hard images for each anchor's
caption. Every image is an anchor once per epoch, whatever is mined, so the anchors of a step follow from (random seed, step) alone. Places
that nothing was mined for are filled with the images that are anchors next, never at random, and are counted. Shape letters: B images of
the whole batch, A anchors, H hard images of an anchor, N rows of the table.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from train.data.negatives import Negatives
from train.data.order import BatchOrder, chosen_caption


@dataclass(frozen=True)
class AnchorOrder:
    """The anchors of each step: whole batches up to start_step, then num_anchors a step, continuing the same order."""

    base: BatchOrder
    start_step: int
    num_anchors: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the images as anchors."""
        return self.base.num_images // self.num_anchors

    def num_epochs(self, step: int) -> float:
        """Passes over the images as anchors, after `step` steps."""
        before = min(step, self.start_step)
        return before / self.base.steps_per_epoch + (step - before) / self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """The epoch, from 0, whose permutation the anchors of a step come from."""
        return self._place(step)[0]

    def images(self, step: int) -> np.ndarray:
        """Image indices of the anchors, int64 of shape (A,), or of shape (B,) up to start_step."""
        if step <= self.start_step:
            return self.base.images(step)
        epoch, start = self._place(step)
        return self.base.permutation(epoch)[start : start + self.num_anchors].astype(np.int64)

    def following(self, step: int, count: int) -> np.ndarray:
        """The next `count` images of the order after a step's anchors, or fewer: to the end of the epoch's order, then from its start."""
        epoch, start = self._place(step)
        num_anchors = self.base.batch_size if step <= self.start_step else self.num_anchors
        places = start + num_anchors + np.arange(min(count, self.base.num_images - num_anchors))
        return self.base.permutation(epoch)[places % self.base.num_images].astype(np.int64)

    def _place(self, step: int) -> tuple[int, int]:
        """(epoch, place of the first anchor in its permutation)."""
        base = self.base
        if step <= self.start_step:
            return base.epoch(step), (step - 1) % base.steps_per_epoch * base.batch_size
        epoch, num_begun = divmod(self.start_step, base.steps_per_epoch)
        first = num_begun * base.batch_size
        num_left = (base.num_images - first) // self.num_anchors  # steps left of the epoch that start_step is in
        number = step - self.start_step - 1
        if number < num_left:
            return epoch, first + number * self.num_anchors
        num_more, place = divmod(number - num_left, self.steps_per_epoch)
        return epoch + 1 + num_more, place * self.num_anchors


EpochOrder = BatchOrder | AnchorOrder
"""The images of each step that follow from the epoch's order, whatever is mined: the whole batch, or its anchors."""


@dataclass(frozen=True)
class HardImages:
    """The hardest images of every caption, CSR: those of caption c are images_N[offsets[c]:offsets[c + 1]], hardest first."""

    offsets: np.ndarray
    images_N: np.ndarray

    @classmethod
    def of_table(cls, table: Negatives, num_captions: int) -> "HardImages":
        """The negatives of a table, sorted by caption instead of by image."""
        images_N, captions_N, ranks_N = (column[table.is_negative_N] for column in (table.image_N, table.captions_N, table.ranks_N))
        counts = np.bincount(captions_N, minlength=num_captions)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), images_N[np.lexsort((ranks_N, captions_N))])

    def of(self, caption: int) -> np.ndarray:
        """Image indices mined for a caption, int64, possibly none."""
        return self.images_N[self.offsets[caption] : self.offsets[caption + 1]]


def compose_anchored(anchors_A: np.ndarray, hard: list[np.ndarray], following: np.ndarray, batch_size: int) -> tuple[np.ndarray, int]:
    """Anchors, their hard images in the order of the anchors, and the next images of the order until the batch is full; no image twice.

    Args:
        hard: for each anchor the hardest images of its caption, together at most what the batch has room for.
        following: the next images of the order; twice the batch is always enough.

    Returns the images, int64 of shape (B,), and how many of them are hard images that are no anchors.
    """
    images = dict.fromkeys(np.concatenate([anchors_A, *hard]).tolist())  # a set that keeps its order
    num_hard = len(images) - len(anchors_A)
    for image in following.tolist():
        if len(images) == batch_size:
            break
        images.setdefault(image)
    return np.fromiter(images, np.int64, len(images)), num_hard


class HardImageOrder:
    """The order of steps whose batches hold anchors and their hard images.

    Args:
        hard: None before the first mining.
    """

    def __init__(self, anchors: AnchorOrder, dataset: RetrievalSet, hard: HardImages | None) -> None:
        self.seed, self.epoch = anchors.base.seed, anchors.epoch
        self._anchors, self._dataset, self._hard = anchors, dataset, hard

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """Image indices of a step's whole batch, int64 of shape (B,), and the number of hard images that follow its anchors.

        Raises:
            ValueError: the step is after start_step, and nothing is mined yet.
        """
        anchors, batch_size = self._anchors.images(step), self._anchors.base.batch_size
        if step <= self._anchors.start_step:
            return anchors, 0
        if self._hard is None:
            raise ValueError(f"step {step} needs hard images, and none are mined yet")
        hard = [self._hard.of(chosen_caption(self._dataset, int(image), self.epoch(step), self.seed)) for image in anchors]
        return compose_anchored(anchors, hard, self._anchors.following(step, 2 * batch_size), batch_size)

    def images(self, step: int) -> np.ndarray:
        """Image indices of a step's whole batch, int64 of shape (B,), no image twice."""
        return self.batch(step)[0]

    def step_record(self, step: int) -> dict[str, Any]:
        """Numbers of anchors, of hard images, and of images that fill the batch."""
        num_anchors, (images_B, num_hard) = len(self._anchors.images(step)), self.batch(step)
        return {"num_seeds": num_anchors, "num_hard_images": num_hard, "num_filled": len(images_B) - num_anchors - num_hard}

    def window_record(self) -> dict[str, Any]:
        """Anchors a step, and steps until each image was an anchor once."""
        return {"num_seeds": self._anchors.num_anchors, "steps_per_epoch": self._anchors.steps_per_epoch}

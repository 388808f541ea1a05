"""Batches of neighbours: the images of the steps up to the next mining, grouped so that images which the model confuses share a batch.

Two images are neighbours if a caption of the one was mined for the other. A window of steps has the images of the plain order; they are
assigned to its steps greedily: a batch grows by the image with the most neighbours in it. (Sachidananda et al. 2022, arXiv 2210.12874,
order whole epochs by minimising the bandwidth of a graph of hard pairs.) Shape letters: I images, N images of the window, B images of a
batch, M mined pairs, E directed edges, K batches.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from train.data.negatives import Negatives
from train.data.order import COMPOSITION, BatchOrder, generator


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of each image, symmetric, CSR: those of image i are images_E[offsets[i]:offsets[i + 1]], ascending."""

    offsets: np.ndarray
    images_E: np.ndarray

    @classmethod
    def of_table(cls, table: Negatives, dataset: RetrievalSet) -> "Neighbours":
        """Edges between each image and the images of the captions mined for it; additional captions have no image.

        Two images are no neighbours if a caption of one is a positive of the other.
        """
        owned_N = (table.captions_N < dataset.num_captions) & table.is_negative_N  # relabelled rows are positives
        one_M, other_M = table.image_N[owned_N], dataset.caption_image_C[table.captions_N[owned_N]]
        images_P, captions_P = dataset.positive_pairs()
        true_P = images_P * dataset.num_images + dataset.caption_image_C[captions_P]
        apart_M = ~np.isin([one_M * dataset.num_images + other_M, other_M * dataset.num_images + one_M], true_P).any(axis=0)
        both_M = np.stack([one_M[apart_M], other_M[apart_M]], axis=1)
        links_E2 = np.unique(np.concatenate([both_M, both_M[:, ::-1]]), axis=0)
        counts = np.bincount(links_E2[:, 0], minlength=dataset.num_images)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), links_E2[:, 1])

    def of(self, image: int) -> np.ndarray:
        """The neighbours of an image, int64, ascending."""
        return self.images_E[self.offsets[image] : self.offsets[image + 1]]

    def num_met(self, images_B: np.ndarray) -> int:
        """Directed edges within a batch."""
        is_there_I = np.zeros(len(self.offsets) - 1, dtype=bool)
        is_there_I[images_B] = True
        return sum(int(is_there_I[self.of(image)].sum()) for image in images_B.tolist())


def gather_neighbours(due_N: np.ndarray, neighbours: Neighbours, batch_size: int) -> np.ndarray:
    """Group the images of a window into batches, int64 of shape (N / B, B), each image once.

    A batch grows by the image with the most neighbours in it, of equals the first in the plain order; where none is left, by the first
    image of the plain order that is not assigned yet.

    Args:
        due_N: distinct image indices in the plain order; N is a multiple of B.
    """
    place_I = np.full(len(neighbours.offsets) - 1, -1)
    place_I[due_N] = np.arange(len(due_N))
    is_assigned = bytearray(len(due_N))
    assigned: list[int] = []
    first = 0
    for _ in range(len(due_N) // batch_size):
        num_links: dict[int, int] = {}
        heap: list[tuple[int, int]] = []
        for _ in range(batch_size):
            place = _most_linked(heap, num_links)
            if place is None:
                while is_assigned[first]:
                    first += 1
                place = first
            is_assigned[place] = 1
            num_links.pop(place, None)
            assigned.append(place)
            for other in place_I[neighbours.of(int(due_N[place]))].tolist():
                if other >= 0 and not is_assigned[other]:
                    num_links[other] = num_links.get(other, 0) + 1
                    heappush(heap, (-num_links[other], other))
    return due_N[np.array(assigned, dtype=np.int64)].reshape(-1, batch_size)


def _most_linked(heap: list[tuple[int, int]], num_links: dict[int, int]) -> int | None:
    """The place with the most edges into the batch; outdated entries of the heap are dropped."""
    while heap:
        negative_count, place = heappop(heap)
        if num_links.get(place) == -negative_count:
            return place
    return None


class NeighbourOrder:
    """The order of the steps of one window, whose batches are composed of neighbours; steps count from 1.

    The window is cut where epochs end, so that each image comes once per epoch. The batches of a part are shuffled, as the first ones hold
    the most neighbours. The order follows from (seed, window, table).

    Args:
        window: the steps from one mining to the next.
    """

    def __init__(self, base: BatchOrder, window: range, neighbours: Neighbours) -> None:
        self.seed, self.epoch = base.seed, base.epoch
        self._base, self._window, self._neighbours = base, window, neighbours
        self._composed: tuple[range, np.ndarray] | None = None  # the part of the window composed last

    def part(self, step: int) -> range:
        """The steps of the window that lie in the epoch of a step.

        Raises:
            ValueError: the step is not of the window.
        """
        if step not in self._window:
            raise ValueError(f"step {step}: this table composes steps {self._window.start} to {self._window.stop - 1} only")
        first = self._base.epoch(step) * self._base.steps_per_epoch + 1
        return range(max(first, self._window.start), min(first + self._base.steps_per_epoch, self._window.stop))

    def images(self, step: int) -> np.ndarray:
        """Image indices of a step's whole batch, int64 of shape (B,), no image twice."""
        part = self.part(step)
        if self._composed is None or self._composed[0] != part:
            due_N = np.concatenate([self._base.images(due) for due in part])
            batches_KB = gather_neighbours(due_N, self._neighbours, self._base.batch_size)
            shuffled_K = generator(self.seed, COMPOSITION, part.start).permutation(len(part))
            self._composed = part, batches_KB[shuffled_K]
        return self._composed[1][step - part.start]

    def step_record(self, step: int) -> dict[str, Any]:
        """Mean number of neighbours of an image that are in its batch."""
        images_B = self.images(step)
        return {"neighbours_per_image": self._neighbours.num_met(images_B) / len(images_B)}

    def window_record(self) -> dict[str, Any]:
        """Of the window's first part: number of neighbour pairs, and the share that meets in a batch, here and in the plain order."""
        part = self.part(self._window.start)
        num_links = max(1, len(self._neighbours.images_E))
        return {
            "num_neighbour_pairs": len(self._neighbours.images_E) // 2,
            "share_met": sum(self._neighbours.num_met(self.images(step)) for step in part) / num_links,
            "share_met_plain": sum(self._neighbours.num_met(self._base.images(step)) for step in part) / num_links,
        }

"""The result of one retrieval stage in one direction: the top K of every query, and the ranks of its positives.

Shape letters: Q queries, K depth, P positive (query, gallery item) pairs of all queries together.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Direction = Literal["image_to_text", "text_to_image"]
DIRECTIONS: tuple[Direction, Direction] = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class Ranking:
    """The ranked gallery of every query: its first K items, and the exact rank of every positive, however deep.

    Queries and gallery items are named by their index in the data set, which is in id order (images by id, captions by
    image id and place), so that "the lower index first" breaks ties by id.

    Attributes:
        direction: image to text or text to image.
        top_indices_QK: int64, gallery indices, best first.
        top_scores_QK: float32, the scores that ordered them.
        positive_offsets: int64, shape (Q + 1,); the positives of query q are at offsets[q]:offsets[q + 1] below.
        positive_indices_P: int64, gallery index of each positive, ascending within a query.
        positive_ranks_P: int64, rank of each positive in the whole gallery, from 1.
    """

    direction: Direction
    top_indices_QK: np.ndarray
    top_scores_QK: np.ndarray
    positive_offsets: np.ndarray
    positive_indices_P: np.ndarray
    positive_ranks_P: np.ndarray

    @property
    def num_queries(self) -> int:
        """Number of queries, Q."""
        return len(self.positive_offsets) - 1

    @property
    def depth(self) -> int:
        """Number of gallery items stored per query, K."""
        return self.top_indices_QK.shape[1]

    def best_ranks(self) -> np.ndarray:
        """Rank of the best-placed positive of each query, int64 of shape (Q,), from 1. Every query has one by construction."""
        return np.minimum.reduceat(self.positive_ranks_P, self.positive_offsets[:-1])

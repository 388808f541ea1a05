"""New."""

from dataclasses import dataclass

import numpy as np
import torch

_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class FrozenRows:
    """The embeddings of a frozen tower, memory-mapped.

    Attributes:
        vectors_ND: float32; a row of zeros stands for a picture that did not decode.
    """

    vectors_ND: np.ndarray

    def of(self, indices_N: np.ndarray) -> torch.Tensor:
        """Some rows, float32 of shape (indices, D)."""
        return torch.from_numpy(np.array(self.vectors_ND[indices_N]))

    def unknown(self) -> list[int]:
        """The pictures that did not decode."""
        parts = range(0, len(self.vectors_ND), _ROWS_AT_ONCE)
        return [start + int(row) for start in parts for row in np.flatnonzero(~self.vectors_ND[start : start + _ROWS_AT_ONCE].any(axis=1))]

    def is_known(self, index: int) -> bool:
        """False for a picture that did not decode."""
        return bool(self.vectors_ND[index].any())


@dataclass(frozen=True)
class FrozenEmbeddings:
    """What need not be embedded in training: images or captions of the train split, by index; None: embedded at every step."""

    images: FrozenRows | None = None
    captions: FrozenRows | None = None


NOTHING_FROZEN = FrozenEmbeddings()

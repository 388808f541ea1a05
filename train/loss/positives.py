"""Which (image, text) pairs of a batch are positive, looked up block by block: never a matrix, no list longer than a block has pairs.

Every image carries the hashes of all captions of its group, so a positive is recognised whichever process its text comes from. Shape
letters: b images of this process, P positive pairs.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from eval.dataset.retrieval_set import GroupHashes, matching_pairs


class BatchPositives:
    """The positive pairs between images of this process and texts of all.

    Args:
        hashes: for each process, int64 hashes of its gathered texts.
        truths: (key_b, true): the key of each image of this process, int64 (e.g. its group), and which hashes are true of which key. A pair
            is positive by one of them at most.
        left_out: the same with hashes of their own, of pairs that may be positive: they are left out of the loss, unless they are positive.
    """

    def __init__(
        self,
        hashes: list[np.ndarray],
        truths: Sequence[tuple[np.ndarray, GroupHashes]],
        left_out: Sequence[tuple[np.ndarray, list[np.ndarray], GroupHashes]] = (),
    ) -> None:
        self._truths = [_Known(key_b, hashes, true) for key_b, true in truths]
        self._left_out = [_Known(*entry) for entry in left_out]

    def pairs(self, rows: slice, owner: int, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of every positive pair of a block, int64, counted from the block's corner, each once.

        Args:
            owner: the process whose texts the columns are.
        """
        return _union([known.pairs(rows, owner, columns) for known in self._truths])

    def left_out(self, rows: slice, owner: int, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """The same of the pairs left out of the loss; positive pairs, and repetitions, may be among them."""
        return _union([known.pairs(rows, owner, columns) for known in self._left_out])


def _union(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    none = np.empty(0, dtype=np.int64)
    return np.concatenate([none, *(rows_P for rows_P, _ in found)]), np.concatenate([none, *(columns_P for _, columns_P in found)])


class _Known:
    """Which hashes belong to which keys, for the images and texts of a batch."""

    def __init__(self, key_b: np.ndarray, hashes: list[np.ndarray], known: GroupHashes) -> None:
        self._key_b, self._hashes = key_b, hashes
        self._known = known.within(key_b, np.concatenate(hashes))
        self._of_rows = lru_cache(maxsize=None)(lambda start, stop: self._known.within(key_b[start:stop], None))

    def pairs(self, rows: slice, owner: int, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) counted from the block's corner, each once."""
        return matching_pairs(self._key_b[rows], self._hashes[owner][columns], self._of_rows(rows.start, rows.stop))

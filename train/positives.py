"""Which (image, text) pairs of a batch are true, looked up block by block: never a matrix, and no list longer than a block has pairs.

Every image carries all true captions of its group, so a text drawn, or mined, on another process is known for what it is. Shape letters:
b images of this process, P true pairs.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from eval.dataset import GroupHashes, matching_pairs


class BatchPositives:
    """The true pairs between images of this process and texts of any.

    Args:
        hashes: for each process, int64 hashes of the texts it sends round.
        truths: (key_b, true): the key of each image of this process, int64 (its group, say), and which hashes are true of which key. A pair
            is true by one of them at most.
    """

    def __init__(self, hashes: list[np.ndarray], truths: Sequence[tuple[np.ndarray, GroupHashes]]) -> None:
        self._hashes = hashes
        every_hash = np.concatenate(hashes)
        self._truths = [(key_b, true.within(key_b, every_hash)) for key_b, true in truths]
        self._true_of_rows = lru_cache(maxsize=None)(self._restrict)

    def pairs(self, rows: slice, owner: int, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of every true pair of a block, int64, counted from the block's corner, each once.

        Args:
            owner: the process whose texts the columns are.
        """
        hashes_c = self._hashes[owner][columns]
        found = [matching_pairs(key_r, hashes_c, true) for key_r, true in self._true_of_rows(rows.start, rows.stop)]
        return np.concatenate([rows_P for rows_P, _ in found]), np.concatenate([columns_P for _, columns_P in found])

    def _restrict(self, start: int, stop: int) -> list[tuple[np.ndarray, GroupHashes]]:
        return [(key_b[start:stop], true.within(key_b[start:stop], None)) for key_b, true in self._truths]

"""Which (image, text) pairs of a batch are true, looked up block by block: never a matrix, and no list longer than a block has pairs.

Every image carries all true captions of its group, so a text drawn, or mined, on another process is known for what it is. Shape letters:
b images of this process, P true pairs.
"""

from functools import lru_cache

import numpy as np

from eval.dataset import GroupHashes, RetrievalSet, matching_pairs


class BatchPositives:
    """The true pairs between images of this process and texts of any.

    Args:
        group_b: int64, the group of each image.
        hashes: for each process, int64 hashes of the texts it sends round.
        true: what is true of each group.
    """

    def __init__(self, group_b: np.ndarray, hashes: list[np.ndarray], true: GroupHashes) -> None:
        self._group_b, self._hashes = group_b, hashes
        self._true = true.within(group_b, np.concatenate(hashes))
        self._true_of_rows = lru_cache(maxsize=None)(self._restrict)

    @classmethod
    def of(cls, dataset: RetrievalSet, images_b: np.ndarray, texts: list[np.ndarray]) -> "BatchPositives":
        """For image indices of this process and, of each process, caption indices of a data set."""
        return cls(dataset.group_I[images_b], [dataset.caption_hash_C[captions] for captions in texts], dataset.true_hashes)

    def pairs(self, rows: slice, owner: int, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of every true pair of a block, int64, counted from the block's corner, each once.

        Args:
            owner: the process whose texts the columns are.
        """
        return matching_pairs(self._group_b[rows], self._hashes[owner][columns], self._true_of_rows(rows.start, rows.stop))

    def _restrict(self, start: int, stop: int) -> GroupHashes:
        return self._true.within(self._group_b[start:stop], None)

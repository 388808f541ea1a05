"""Scan a tile of scores on a CPU: which are above a floor, and how many are above each of a few thresholds.

Two naive passes over a tile take longer than its product, so the tile is read once, in strips that fit a core's cache, and booleans are
counted eight at a time: eight bytes of a bool array are one 64-bit word, and at most 128 words are added, so no byte overflows.
Shape letters: q rows (or columns) and n columns of a tile, m thresholds of each of the q, s survivors.
"""

from collections.abc import Iterator

import numpy as np

_STRIP = 64  # rows: 64 x 2,048 float32 are half a megabyte
_WORDS_ADDED = 128


def scan(
    tile: np.ndarray, floor_q: np.ndarray, thresholds_qm: np.ndarray, *, by_column: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(queries_s, items_s, above_qm): where a score is above its query's floor, by query and item; how many are above each threshold.

    Args:
        tile: float32 scores; rows are queries, or columns are (it is not transposed then).
        floor_q, thresholds_qm: float32.
    """
    num_columns = tile.shape[1]
    thresholds_mq = np.ascontiguousarray(thresholds_qm.T)
    above_mq = np.zeros(thresholds_mq.shape, dtype=np.int64)
    places = []
    for start, strip, mask in _strips(tile):
        queries = slice(None) if by_column else slice(start, start + len(strip))
        shape = (1, -1) if by_column else (-1, 1)
        np.greater(strip, floor_q[queries].reshape(shape), out=mask.values)
        places.append(mask.places() + start * num_columns)
        for thresholds_q, above_q in zip(thresholds_mq, above_mq, strict=True):
            np.greater(strip, thresholds_q[queries].reshape(shape), out=mask.values)
            above_q[queries] += mask.count_by_column() if by_column else mask.count_by_row()
    place_s = np.concatenate(places)
    rows_s, columns_s = place_s // num_columns, place_s % num_columns
    if not by_column:
        return rows_s, columns_s, above_mq.T
    # A tile is narrower than 65,536, and numpy sorts 16-bit numbers by radix.
    order_s = np.argsort(columns_s.astype(np.uint16) if num_columns <= 65_536 else columns_s, kind="stable")
    return columns_s[order_s], rows_s[order_s], above_mq.T


def _strips(tile_qn: np.ndarray) -> Iterator[tuple[int, np.ndarray, "_Mask"]]:
    """(first row, rows, a mask of their shape) for each strip; the mask's memory is used again."""
    masks: dict[int, _Mask] = {}
    for start in range(0, len(tile_qn), _STRIP):
        strip = tile_qn[start : start + _STRIP]
        mask = masks.get(len(strip)) or masks.setdefault(len(strip), _Mask(len(strip), tile_qn.shape[1]))
        yield start, strip, mask


class _Mask:
    """Booleans of a strip, also readable as 64-bit words of eight."""

    def __init__(self, num_rows: int, num_columns: int) -> None:
        size = num_rows * num_columns
        self._bytes = np.zeros(-(-size // 8) * 8, dtype=bool)  # the padding stays False
        self._words = self._bytes.view(np.uint64)
        self.values = self._bytes[:size].reshape(num_rows, num_columns)

    def places(self) -> np.ndarray:
        """Flat index of every True, int64, ascending: most words hold none, so only the others are unpacked."""
        words = np.flatnonzero(self._words != 0)
        found = np.flatnonzero(self._bytes.reshape(-1, 8)[words])
        return words[found >> 3] * 8 + (found & 7)

    def count_by_row(self) -> np.ndarray:
        """Number of True in each row, int64."""
        num_rows, num_columns = self.values.shape
        if num_columns % 8:
            return np.count_nonzero(self.values, axis=1)
        words = self._words.reshape(num_rows, num_columns // 8)
        counts = np.zeros(num_rows, dtype=np.int64)
        for start in range(0, words.shape[1], _WORDS_ADDED):
            lanes = words[:, start : start + _WORDS_ADDED].sum(axis=1)
            counts += lanes.view(np.uint8).reshape(num_rows, 8).sum(axis=1, dtype=np.int64)
        return counts

    def count_by_column(self) -> np.ndarray:
        """Number of True in each column, int64; a strip has fewer rows than a byte can count."""
        num_columns = self.values.shape[1]
        if num_columns % 8:
            return np.count_nonzero(self.values, axis=0)
        return self._words.reshape(-1, num_columns // 8).sum(axis=0).view(np.uint8).astype(np.int64)

"""Scan a tile of scores on a CPU: which are above a floor, and how many are above each of a few thresholds.

Two naive passes over a tile take longer than its product, so the tile is read once, in strips that fit a core's cache, and booleans are
counted eight at a time: eight bytes of a bool array are one 64-bit word, and at most 128 words are added, so no byte overflows.
Shape letters: q rows and n columns of a tile, m thresholds a row (or column), s survivors.
"""

from collections.abc import Iterator

import numpy as np

_STRIP = 64  # rows: 64 x 2,048 float32 are half a megabyte
_WORDS_ADDED = 128


def scan_rows(tile_qn: np.ndarray, floor_q: np.ndarray, thresholds_qm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows_s, columns_s, above_qm): where a score is above its row's floor, by row and column; how many are above each threshold of a row.

    Args:
        tile_qn: float32 scores.
        floor_q, thresholds_qm: float32.
    """
    num_columns = tile_qn.shape[1]
    above_qm = np.zeros(thresholds_qm.shape, dtype=np.int64)
    places = []
    for start, strip, mask in _strips(tile_qn):
        rows = slice(start, start + len(strip))
        np.greater(strip, floor_q[rows, None], out=mask.values)
        places.append(mask.places() + start * num_columns)
        for column in range(thresholds_qm.shape[1]):
            np.greater(strip, thresholds_qm[rows, column, None], out=mask.values)
            above_qm[rows, column] = mask.count_by_row()
    place_s = np.concatenate(places)
    return place_s // num_columns, place_s % num_columns, above_qm


def scan_columns(tile_qn: np.ndarray, floor_n: np.ndarray, thresholds_mn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with a floor and thresholds for each column, without transposing the tile.

    Returns:
        (columns_s, rows_s, above_mn): survivors by column and then row; counts per threshold and column.
    """
    num_columns = tile_qn.shape[1]
    above_mn = np.zeros(thresholds_mn.shape, dtype=np.int64)
    places = []
    for start, strip, mask in _strips(tile_qn):
        np.greater(strip, floor_n, out=mask.values)
        places.append(mask.places() + start * num_columns)
        for row in range(len(thresholds_mn)):
            np.greater(strip, thresholds_mn[row], out=mask.values)
            above_mn[row] += mask.count_by_column()
    place_s = np.concatenate(places)
    columns_s, rows_s = place_s % num_columns, place_s // num_columns
    # A tile is narrower than 65,536, and numpy sorts 16-bit numbers by radix.
    order_s = np.argsort(columns_s.astype(np.uint16), kind="stable") if num_columns <= 65_536 else np.argsort(columns_s, kind="stable")
    return columns_s[order_s], rows_s[order_s], above_mn


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

"""Accumulate ranks over streamed tiles of scores: the running top K of each query, and the number of items above each positive.

Shape letters: Q queries, K depth, P positives; q queries and n items of one tile, m positives of the query with the most, p of them all.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch

from eval.dataset.retrieval_set import PositivePairs
from eval.processes import Processes, sent
from eval.search.ranking import Direction, Ranking
from eval.search.top_k import DeviceTopK, TopK, best_of

_MERGED_AT_ONCE = 65_536
_ROWS_PER_THREAD = 64
_ROWS_ON_DEVICE = 1024
_FEW_POSITIVES = 8  # up to here one comparison of the row per positive is faster than sorting the row


class RankAccumulator:
    """The running result of a search: exact however the tiles come, as long as those of a query come in the order of their items."""

    def __init__(self, positives: PositivePairs, scores_P: np.ndarray, num_items: int, depth: int) -> None:
        """scores_P: score of each positive pair, float32, bit for bit as in the tiles."""
        self.positives, self.depth, self._num_items = positives, min(depth, num_items), num_items
        self._shape = (len(positives.offsets) - 1, self.depth)
        self._above_P = np.zeros(len(positives.indices_P), dtype=np.int64)
        self._device_above_P: torch.Tensor | None = None  # of tiles on a GPU, which is not waited for at each
        self._scores_P = scores_P
        self._open: dict[int, TopK | DeviceTopK] = {}  # by first query of a block

    def update(self, tile: torch.Tensor, first_query: int, first_item: int, *, by_column: bool = False) -> None:
        """Add a tile whose rows, or columns, are queries; it may be overwritten afterwards."""
        tile_qn = tile.T if by_column else tile
        span, offsets, own_p = self._positives_of(first_query, len(tile_qn), first_item)
        scores_p = self._scores_P[span]
        top_k = self._open.get(first_query) or (TopK(len(tile_qn), self.depth) if tile.device.type == "cpu" else DeviceTopK(self.depth))
        self._open[first_query] = top_k
        if isinstance(top_k, DeviceTopK):
            tile_qn = tile_qn.contiguous()
            top_k.update(tile_qn, first_item)
            if self._device_above_P is None:
                self._device_above_P = torch.zeros(len(self._above_P), dtype=torch.int64, device=tile.device)
            self._device_above_P[span] += device_num_above(tile_qn, offsets, scores_p, own_p)
            return
        thresholds_qm, slots_p = _thresholds(offsets, scores_p, own_p, tile_qn.shape[1])
        above_qm = top_k.update(tile.numpy(), first_item, thresholds_qm, by_column=by_column)
        self._above_P[span] += _counted(above_qm, slots_p, tile_qn, offsets, scores_p, own_p)

    @cached_property
    def _scores_QK(self) -> np.ndarray:
        return np.full(self._shape, -np.inf, dtype=np.float32)

    @cached_property
    def _indices_QK(self) -> np.ndarray:
        return np.full(self._shape, self._num_items, dtype=np.int64)

    def finalize(self, first_query: int) -> None:
        """End the block of queries that begins here: store its top K and free its buffers."""
        top_k = self._open.pop(first_query, None)
        if top_k is not None:
            items_qk, scores_qk = top_k.best()
            place = slice(first_query, first_query + len(items_qk)), slice(items_qk.shape[1])
            self._scores_QK[place] = scores_qk
            self._indices_QK[place] = np.where(items_qk < 0, self._num_items, items_qk)

    def ranking(self, direction: Direction, processes: Processes) -> Ranking:
        """The result, on every process, after each has added its share of the tiles."""
        for first_query in list(self._open):
            self.finalize(first_query)
        scores_QK, indices_QK = self._scores_QK, self._indices_QK
        if processes.world_size > 1:
            for start in range(0, len(scores_QK), _MERGED_AT_ONCE):
                part = slice(start, start + _MERGED_AT_ONCE)
                scores = torch.from_numpy(np.concatenate(processes.gather(scores_QK[part][None]), axis=2)[0])
                indices = torch.from_numpy(np.concatenate(processes.gather(indices_QK[part][None]), axis=2)[0])
                scores_QK[part], indices_QK[part] = (best.numpy() for best in best_of(scores, indices, self.depth))
        own_P = self._above_P if self._device_above_P is None else self._above_P + self._device_above_P.cpu().numpy()
        above_P = np.sum(processes.gather(own_P[None]), axis=0)[0]
        return Ranking(direction, indices_QK, scores_QK, self.positives.offsets, self.positives.indices_P, above_P + 1)

    def _positives_of(self, first_query: int, num_queries: int, first_item: int) -> tuple[slice, np.ndarray, np.ndarray]:
        """(span of the positives of some queries, their offsets within it, their items relative to the tile's first item)."""
        offsets = self.positives.offsets[first_query : first_query + num_queries + 1]
        span = slice(int(offsets[0]), int(offsets[-1]))
        return span, offsets - offsets[0], self.positives.indices_P[span] - first_item


def _slots(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row_p, slot_p): the query of each positive of a tile, and its number among those of that query."""
    row_p = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return row_p, np.arange(int(offsets[-1])) - offsets[:-1][row_p]


def _thresholds(
    offsets: np.ndarray, scores_p: np.ndarray, own_p: np.ndarray, num_items: int, most_thresholds: float = _FEW_POSITIVES
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(thresholds that a score must exceed to rank above each positive, float32 of shape (q, m); the place of each positive in them).

    An equal score ranks above a positive of higher index, so a positive beyond the tile gets the next number below its score. There are no
    thresholds (m = 0) if a query has more than `most_thresholds`.
    """
    most = int(np.diff(offsets).max(initial=0))
    row_p, slot_p = _slots(offsets)
    if most > most_thresholds:
        return np.empty((len(offsets) - 1, 0), dtype=np.float32), (row_p, slot_p)
    thresholds_qm = np.full((len(offsets) - 1, most), np.inf, dtype=np.float32)
    beyond_p = own_p >= num_items
    thresholds_qm[row_p, slot_p] = np.where(beyond_p, np.nextafter(scores_p, np.float32(-np.inf)), scores_p)
    return thresholds_qm, (row_p, slot_p)


def _counted(
    above_qm: np.ndarray,
    slots_p: tuple[np.ndarray, ...],
    tile_qn: torch.Tensor,
    offsets: np.ndarray,
    scores_p: np.ndarray,
    own_p: np.ndarray,
) -> np.ndarray:
    """Number above each positive: those counted by threshold, and for a positive inside the tile the equal ones before it."""
    if not above_qm.shape[1]:
        return num_above(tile_qn.contiguous(), offsets, scores_p, own_p)
    above_p = above_qm[slots_p]
    inside_p = np.flatnonzero((own_p > 0) & (own_p < tile_qn.shape[1]))
    tile = tile_qn.numpy()
    for start in range(0, len(inside_p), _ROWS_PER_THREAD):
        some = inside_p[start : start + _ROWS_PER_THREAD]
        equal = tile[slots_p[0][some]] == scores_p[some, None]
        equal &= np.arange(tile.shape[1]) < own_p[some, None]
        above_p[some] += np.count_nonzero(equal, axis=1)
    return above_p


def num_above(tile_qn: torch.Tensor, offsets: np.ndarray, scores_p: np.ndarray, own_p: np.ndarray) -> np.ndarray:
    """How many of a tile's items rank above each positive of its queries: the strictly better, and the equal ones of lower index.

    One sort a row and a binary search a positive: a caption with a thousand positive images does not cost a thousand passes.

    Args:
        offsets: positives of row r at offsets[r]:offsets[r + 1].
        own_p: index of each positive counted from the tile's first item: below 0 or beyond the tile where it is in another.
    """
    counts = np.diff(offsets)
    row_p, place_p = _slots(offsets)
    scores_qm = np.zeros((len(counts), int(counts.max(initial=0))), dtype=np.float32)
    scores_qm[row_p, place_p] = scores_p
    wanted = torch.from_numpy(scores_qm)
    sorted_qn = _sorted_rows(tile_qn)
    up_to_p = torch.searchsorted(sorted_qn, wanted, right=True).numpy()[row_p, place_p]
    equal_p = up_to_p - torch.searchsorted(sorted_qn, wanted).numpy()[row_p, place_p]
    num_items = tile_qn.shape[1]
    above_p = num_items - up_to_p
    above_p[own_p >= num_items] += equal_p[own_p >= num_items]
    inside_p = np.flatnonzero((own_p > 0) & (own_p < num_items) & (equal_p > 1))
    groups: dict[tuple[int, float], list[int]] = {}
    for place in inside_p.tolist():
        groups.setdefault((int(row_p[place]), float(scores_p[place])), []).append(place)
    for (row, score), places in groups.items():
        equal = torch.nonzero(tile_qn[row] == score).flatten().numpy()
        above_p[places] += np.searchsorted(equal, own_p[places])
    return above_p


def device_num_above(tile_qn: torch.Tensor, offsets: np.ndarray, scores_p: np.ndarray, own_p: np.ndarray) -> torch.Tensor:
    """`num_above` of a tile on a GPU, int64 there; the host waits for nothing."""
    device, num_items = tile_qn.device, tile_qn.shape[1]
    thresholds_qm, (row_p, slot_p) = _thresholds(offsets, scores_p, own_p, num_items, np.inf)
    wanted_qm = sent(torch.from_numpy(thresholds_qm), device)
    if wanted_qm.shape[1] > _FEW_POSITIVES:
        above_qm = num_items - torch.searchsorted(torch.sort(tile_qn, dim=1).values, wanted_qm, right=True)
    else:
        above_qm = wanted_qm.new_zeros(wanted_qm.shape, dtype=torch.int64)
        for column in range(wanted_qm.shape[1]):
            above_qm[:, column] = (tile_qn > wanted_qm[:, column : column + 1]).sum(dim=1)
    above_p = above_qm[tuple(sent(torch.from_numpy(places), device) for places in (row_p, slot_p))]
    items_n, inside_p = torch.arange(num_items, device=device), np.flatnonzero((own_p > 0) & (own_p < num_items))
    for start in range(0, len(inside_p), _ROWS_ON_DEVICE):
        some = inside_p[start : start + _ROWS_ON_DEVICE]
        place_s, row_s, score_s, own_s = (sent(torch.from_numpy(one), device) for one in (some, row_p[some], scores_p[some], own_p[some]))
        equal_sn = (tile_qn.index_select(0, row_s) == score_s[:, None]) & (items_n < own_s[:, None])
        above_p.index_add_(0, place_s, equal_sn.sum(dim=1))
    return above_p


def _sorted_rows(tile_qn: torch.Tensor) -> torch.Tensor:
    """Each row's scores, ascending, by numpy, which sorts values ten times faster than torch, with torch's number of threads."""
    tile, sorted_qn = tile_qn.numpy(), np.empty(tile_qn.shape, dtype=np.float32)
    num_threads = min(torch.get_num_threads(), max(1, len(tile) // _ROWS_PER_THREAD))
    edges = [len(tile) * part // num_threads for part in range(num_threads + 1)]

    def sort(start: int, stop: int) -> None:
        sorted_qn[start:stop] = tile[start:stop]
        sorted_qn[start:stop].sort(axis=1)

    with ThreadPoolExecutor(num_threads) as threads:  # numpy releases the interpreter lock while it sorts
        list(threads.map(sort, edges, edges[1:]))
    return torch.from_numpy(sorted_qn)

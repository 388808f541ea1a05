"""The running top K of every query over streamed tiles of scores.

On a CPU only scores above their query's floor, the K-th best score when its buffer was last sorted, are added to the buffer, and only a
full buffer is sorted. Of a hundred thousand random items some hundreds pass. (The idea is that of
FAISS's reservoir: Johnson, Douze, Jegou 2017, arXiv 1702.08734, and its ReservoirTopN.) Shape letters: Q queries, N items, K depth,
W size of the buffer; q queries (all, or some) and n items of one tile, m thresholds, s scores that passed.
"""

import numpy as np
import torch

from eval.search.tile_scan import scan

_LEAST_ROOM = 24
_MOST_ITEMS = 2**32 - 1
_RANKED_AT_ONCE = 256  # queries: a transposed copy of the whole tile would be the largest buffer


class TopK:
    """The running top K of a block of queries; tiles of a query must come in ascending order of their items."""

    def __init__(self, num_queries: int, depth: int) -> None:
        """depth: K; the buffers take somewhat more than 8 K bytes per query."""
        self.depth, self._room = depth, max(depth, _LEAST_ROOM)
        self._scores_QW = np.full((num_queries, depth + self._room), -np.inf, dtype=np.float32)
        self._items_QW = np.full((num_queries, depth + self._room), np.iinfo(np.int32).max, dtype=np.int32)
        self._count_Q = np.zeros(num_queries, dtype=np.int64)
        self._floor_Q = np.full(num_queries, -np.inf, dtype=np.float32)

    def update(self, tile: np.ndarray, first_item: int, thresholds_qm: np.ndarray, *, by_column: bool = False) -> np.ndarray:
        """Add a tile whose rows, or columns, are the queries; returns how many of its scores are above each threshold, int64 (q, m)."""
        tile_qn = tile.T if by_column else tile
        if not np.isneginf(self._floor_Q).any():
            queries_s, items_s, above_qm = scan(tile, self._floor_Q, thresholds_qm, by_column=by_column)
            self._add(tile_qn, queries_s, items_s, first_item)
            return above_qm
        no_floor_q = np.full(len(tile_qn), np.inf, dtype=np.float32)  # no candidates to scan for: the whole rows are ranked
        _, _, above_qm = scan(tile, no_floor_q, thresholds_qm, by_column=by_column)
        for start in range(0, len(tile_qn), _RANKED_AT_ONCE):
            rows_qn = torch.from_numpy(tile_qn[start : start + _RANKED_AT_ONCE]).contiguous()
            self._rank(np.arange(start, start + len(rows_qn)), rows_qn, first_item)
        return above_qm

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """(items_QK int64, scores_QK float32), best first, equal scores by the lower item; -1 and -inf where fewer than K items came."""
        self._sort(np.flatnonzero(self._count_Q > 0))
        items_QK = self._items_QW[:, : self.depth].astype(np.int64)
        scores_QK = self._scores_QW[:, : self.depth].copy()
        items_QK[np.isneginf(scores_QK)] = -1
        return items_QK, scores_QK

    def _add(self, tile_qn: np.ndarray, queries_s: np.ndarray, items_s: np.ndarray, first_item: int) -> None:
        """Add the scores that passed; a query with more of them than its buffer has room for has its whole row ranked."""
        counts_q = np.bincount(queries_s, minlength=len(tile_qn))
        crowded_q = counts_q > self._room
        if crowded_q.any():
            rows_q = np.flatnonzero(crowded_q)
            self._rank(rows_q, torch.from_numpy(np.ascontiguousarray(tile_qn[rows_q])), first_item)
            few_s = ~crowded_q[queries_s]
            queries_s, items_s = queries_s[few_s], items_s[few_s]
            counts_q[crowded_q] = 0
        self._make_room(np.arange(len(tile_qn)), counts_q)
        starts_q = np.cumsum(counts_q) - counts_q
        places_s = self._count_Q[queries_s] + np.arange(len(queries_s)) - starts_q[queries_s]
        self._scores_QW[queries_s, places_s] = tile_qn[queries_s, items_s]
        self._items_QW[queries_s, places_s] = items_s + first_item
        self._count_Q += counts_q

    def _rank(self, queries_q: np.ndarray, tile_qn: torch.Tensor, first_item: int) -> None:
        """Add the top K of whole rows."""
        depth = min(self.depth, tile_qn.shape[1])
        items_qk, scores_qk = top_k(tile_qn, depth)
        self._make_room(queries_q, np.full(len(queries_q), depth))
        places_qk = self._count_Q[queries_q, None] + np.arange(depth)
        self._scores_QW[queries_q[:, None], places_qk] = scores_qk.numpy()
        self._items_QW[queries_q[:, None], places_qk] = items_qk.numpy() + first_item
        self._count_Q[queries_q] += depth
        self._sort(queries_q)

    def _make_room(self, queries_q: np.ndarray, counts_q: np.ndarray) -> None:
        self._sort(queries_q[self._count_Q[queries_q] + counts_q > self._scores_QW.shape[1]])

    def _sort(self, queries_q: np.ndarray) -> None:
        """Sort buffers and drop all but the top K. Later entries have higher items, so a stable sort orders equal scores by item."""
        if not len(queries_q):
            return
        width = int(self._count_Q[queries_q].max())
        ordered, place = torch.sort(torch.from_numpy(self._scores_QW[queries_q, :width]), dim=1, descending=True, stable=True)
        kept = min(self.depth, width)
        self._items_QW[queries_q, :kept] = np.take_along_axis(self._items_QW[queries_q, :width], place[:, :kept].numpy(), axis=1)
        self._scores_QW[queries_q, :kept] = ordered[:, :kept].numpy()
        self._scores_QW[queries_q, kept:] = -np.inf
        self._count_Q[queries_q] = np.minimum(self._count_Q[queries_q], self.depth)
        full_q = queries_q[self._count_Q[queries_q] == self.depth]
        self._floor_Q[full_q] = self._scores_QW[full_q, self.depth - 1]


class DeviceTopK:
    """`TopK` on a GPU: whole tiles are searched there, and the host waits for none of them."""

    def __init__(self, depth: int) -> None:
        """`depth` is K."""
        self._depth = depth
        self._best: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, tile_qn: torch.Tensor, first_item: int) -> None:
        """Add a tile whose rows are all the queries; tiles come in ascending order of their items."""
        indices_qk, scores_qk = top_k(tile_qn, min(self._depth, tile_qn.shape[1]))
        indices_qk += first_item
        if self._best is not None:
            indices_qk, scores_qk = torch.cat([self._best[0], indices_qk], 1), torch.cat([self._best[1], scores_qk], 1)
            scores_qk, place_qk = torch.sort(scores_qk, dim=1, descending=True, stable=True)  # the lower items of equal scores come first
            scores_qk, indices_qk = scores_qk[:, : self._depth], indices_qk.gather(1, place_qk[:, : self._depth])
        self._best = indices_qk, scores_qk

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """(items_QK int64, scores_QK float32) on the host, best first, equal scores by the lower item; -1 where the score is -inf."""
        assert self._best is not None, "a gallery has at least one tile"
        indices_qK, scores_qK = self._best
        return torch.where(scores_qK == -torch.inf, -1, indices_qK).cpu().numpy(), scores_qK.cpu().numpy()


def top_k(tile_qn: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (int64) and scores of the `depth` best of each row, best first, equal scores by the lower index.

    torch.topk orders equal scores arbitrarily. So it is given whole numbers that order as (score, lower index): in their upper half the
    bits of the float32, which order as the numbers do, those below 0 with their other bits turned; in their lower half the index.
    """
    bits_qn = (tile_qn + 0.0).view(torch.int32)  # of both zeros those of 0
    bits_qn = bits_qn ^ ((bits_qn >> 31) & 0x7FFFFFFF)
    places_n = torch.arange(_MOST_ITEMS, _MOST_ITEMS - tile_qn.shape[1], -1, device=tile_qn.device)
    keys_qk = torch.topk((bits_qn.long() << 32) + places_n, min(depth, tile_qn.shape[1]), dim=1).values
    indices_qk = _MOST_ITEMS - (keys_qk & 0xFFFFFFFF)
    return indices_qk, tile_qn.gather(1, indices_qk)


def best_of(scores_qm: torch.Tensor, indices_qm: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, indices) of the `depth` best of each row of candidates, by score and then by index."""
    scores_qk, place_qk = torch.sort(scores_qm, dim=1, descending=True)
    if (scores_qk[:, 1:] == scores_qk[:, :-1]).any():
        scores_qk, indices_qk = in_order(scores_qm, indices_qm)
        return scores_qk[:, :depth], indices_qk[:, :depth]
    return scores_qk[:, :depth], indices_qm.gather(1, place_qk[:, :depth])


def in_order(scores_qm: torch.Tensor, indices_qm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort each row by index, then stably by falling score."""
    order = torch.argsort(indices_qm, dim=1)
    scores_qm, indices_qm = scores_qm.gather(1, order), indices_qm.gather(1, order)
    order = torch.argsort(scores_qm, dim=1, descending=True, stable=True)
    return scores_qm.gather(1, order), indices_qm.gather(1, order)

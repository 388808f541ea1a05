"""Exact search of embeddings that do not fit into memory: the tiles of eval/search/exact.py, with only the top K of every query stored.

A process computes whole rows of tiles, so any number of processes gives the same bits, those of eval/search/exact.py. Several rows of
tiles are computed at once, so the gallery is read once for ROW_BLOCKS_AT_ONCE * QUERY_BLOCK queries of each process; memory apart from the
result does not grow with the number of queries or items. Shape letters: Q queries, N gallery items, K depth,
D width, P positives; q queries and n items of one tile, p positives in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.embedding_files import EmbeddingRows
from eval.execution import ONE_PROCESS, Execution
from eval.processes import sent
from eval.search.exact import GALLERY_BLOCK, QUERY_BLOCK
from eval.search.top_k import DeviceTopK, TopK

ROW_BLOCKS_AT_ONCE = 32


@dataclass(frozen=True)
class Found:
    """The top K of every query; the same on every process.

    Attributes:
        indices_QK: int64, gallery indices, best first, equal scores by the lower index; -1 where there are fewer than K items.
        scores_QK: float32; -inf where the index is -1.
        best_positive_Q: float32, the best score of a positive; -inf for a query without one.
        empty_Q: bool; True where the query is a row of zeros (an image that does not decode).
    """

    indices_QK: np.ndarray
    scores_QK: np.ndarray
    best_positive_Q: np.ndarray
    empty_Q: np.ndarray

    @classmethod
    def blank(cls, num_queries: int, depth: int) -> "Found":
        """A result without any item."""
        shape = (num_queries, depth)
        scores_QK, best_Q = np.full(shape, -np.inf, dtype=np.float32), np.full(num_queries, -np.inf, dtype=np.float32)
        return cls(np.full(shape, -1, dtype=np.int64), scores_QK, best_Q, np.zeros(num_queries, dtype=bool))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The four, in the order above."""
        return self.indices_QK, self.scores_QK, self.best_positive_Q, self.empty_Q


def stream_search(
    queries: EmbeddingRows, gallery: EmbeddingRows, positives: PositivePairs, depth: int, *, execution: Execution = ONE_PROCESS
) -> Found:
    """Rank a gallery for every query by the dot product of unit vectors (cosine), float32; call on every process.

    Args:
        positives: relevant gallery items of each query; their best score is reported, and they stay in the ranking.
        depth: K, cut to the gallery's size.

    A gallery item that is a row of zeros (an image that does not decode) is never found.
    """
    found = Found.blank(queries.num_rows, min(depth, gallery.num_rows))
    processes = execution.processes
    num_row_blocks = -(-queries.num_rows // QUERY_BLOCK)
    tiles = _Tiles(gallery, execution.device)
    at_once = ROW_BLOCKS_AT_ONCE * processes.world_size
    for first in range(0, num_row_blocks, at_once):
        band = range(first, min(first + at_once, num_row_blocks))
        own = []
        for block in band:
            start, stop = block * QUERY_BLOCK, min((block + 1) * QUERY_BLOCK, queries.num_rows)
            vectors_qD = queries.rows(start, stop)  # read by all processes together
            if block % processes.world_size == processes.rank:
                offsets = positives.offsets[start : stop + 1]
                pairs = PositivePairs(offsets - offsets[0], positives.indices_P[offsets[0] : offsets[-1]])
                own.append(_RowBlock(vectors_qD, pairs, min(depth, gallery.num_rows), execution.device))
        tiles.search(own)
        parts = list(zip(*(block.found().arrays() for block in own), strict=True)) or [()] * 4
        rows = slice(band.start * QUERY_BLOCK, band.stop * QUERY_BLOCK)
        for target, blocks in zip(found.arrays(), parts, strict=True):
            target[rows] = np.concatenate(processes.gather_blocks(list(blocks), len(band)))
    return found


class _Tiles:
    """Products of rows of queries with the gallery, one block of the gallery after the other, in fixed buffers.

    An operand's place in memory and its shape may change the last bits of a product: hence copies, padded with zeros.
    """

    def __init__(self, gallery: EmbeddingRows, device: torch.device) -> None:
        self._gallery = gallery
        self._rows = torch.zeros(QUERY_BLOCK, gallery.width, device=device)
        self._columns = torch.zeros(GALLERY_BLOCK, gallery.width, device=device)
        self._tile = torch.empty(QUERY_BLOCK, GALLERY_BLOCK, device=device)

    def search(self, row_blocks: "list[_RowBlock]") -> None:
        """Add every tile of the gallery to every block of queries."""
        for first_item, num_items, empty in self._gallery_blocks():
            for block in row_blocks:
                self._rows[: len(block.vectors_qD)] = block.vectors_qD
                self._rows[len(block.vectors_qD) :] = 0
                torch.mm(self._rows, self._columns.T, out=self._tile)
                tile_qn = self._tile[: len(block.vectors_qD), :num_items]
                if len(empty):
                    tile_qn[:, empty] = -torch.inf
                block.update(tile_qn, first_item)

    def _gallery_blocks(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(first item, number of items, places of rows of zeros) of each block of the gallery, which is in `_columns` meanwhile."""
        for start in range(0, self._gallery.num_rows, GALLERY_BLOCK):
            count = min(GALLERY_BLOCK, self._gallery.num_rows - start)
            vectors_nD = torch.from_numpy(self._gallery.rows(start, start + count))
            self._columns[:count] = sent(vectors_nD, self._columns.device)
            self._columns[count:] = 0
            yield start, count, sent(torch.nonzero(~vectors_nD.any(dim=1)).flatten(), self._columns.device)


class _RowBlock:
    """The queries of one row of the grid and their running top K."""

    def __init__(self, vectors_qD: np.ndarray, positives: PositivePairs, depth: int, device: torch.device) -> None:
        self.vectors_qD = sent(torch.from_numpy(np.array(vectors_qD)), device)
        self._top_k = TopK(len(vectors_qD), depth) if device.type == "cpu" else DeviceTopK(depth)
        self._no_thresholds = np.empty((len(vectors_qD), 0), dtype=np.float32)
        self._best_q = torch.full((len(vectors_qD),), -torch.inf, device=device)
        order = np.argsort(positives.indices_P, kind="stable")
        self._query_p, self._item_p = (sent(torch.from_numpy(one[order]), device) for one in (positives.query_P, positives.indices_P))
        self._sorted_items = positives.indices_P[order]

    def update(self, tile_qn: torch.Tensor, first_item: int) -> None:
        """Add a tile."""
        if isinstance(self._top_k, TopK):
            self._top_k.update(tile_qn.numpy(), first_item, self._no_thresholds)
        else:
            self._top_k.update(tile_qn, first_item)
        start, stop = np.searchsorted(self._sorted_items, [first_item, first_item + tile_qn.shape[1]])
        if stop > start:
            query_p = self._query_p[start:stop]
            self._best_q.scatter_reduce_(0, query_p, tile_qn[query_p, self._item_p[start:stop] - first_item], "amax")

    def found(self) -> Found:
        """The result of these queries over all tiles."""
        indices_qK, scores_qK = self._top_k.best()
        return Found(indices_qK, scores_qK, self._best_q.cpu().numpy(), (~self.vectors_qD.any(dim=1)).cpu().numpy())

"""Tiles of one model's scores in which the views of queries and of gallery items are pooled.

For view number v a block of rows (or columns) holds the v-th view of each item that has one; the others' scores are masked. Products are
made in buffers of one shape that never move, since shape and place of an operand change last bits (docs/numerics.md). What is held
does not grow with the number of views: pooling runs.

Shape letters: N items, D width; q queries and n items of one tile.
"""

import numpy as np
import torch

from rerank.combine.views import Pool, Views


class PooledTiles:
    """Scores (cosines, pooled) of one model by tile; every tile overwrites the one before.

    A pool that changes nothing is left out, so that without pools a tile is the very product of eval/search/exact.py.
    """

    def __init__(
        self,
        queries: Views,
        gallery: Views,
        pools: tuple[Pool | None, Pool | None],
        scale: float,
        device: torch.device,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`pools` are those of the query side and of the candidate side, `shape` a tile's; only max and log-sum-exp are pooled here."""
        self._rows = _ViewBlock(queries, pools[0], torch.zeros(shape[0], queries.vectors_ND.shape[1], device=device, dtype=dtype))
        self._columns = _ViewBlock(gallery, pools[1], torch.zeros(shape[1], gallery.vectors_ND.shape[1], device=device, dtype=dtype))
        self._product = torch.empty(*shape, device=device, dtype=dtype)
        self._by_row, self._by_column = (
            _Running(pool, scale, self._product) if pool is not None and pool.pooling in ("max", "log-sum-exp") else None for pool in pools
        )

    def pooled(self, first_query: int, first_item: int) -> torch.Tensor:
        """The scores of the tile that begins there, whatever lies beyond the edge included."""
        tile_qn = self.asked_by(0, first_query, first_item)
        if self._by_row is None:
            return tile_qn
        self._by_row.begin(tile_qn)
        for view in range(1, self._rows.most_views(first_query) + 1):
            self._by_row.add(self.asked_by(view, first_query, first_item), self._rows.without(view, first_query), 0)
        return self._by_row.end(self._rows.counts(first_query)[:, None])

    def counts(self, first_query: int) -> np.ndarray:
        """How many further views each query of a block asks with, int64, padding included."""
        return self._rows.padded_counts(first_query)

    def asked_by(self, view: int, first_query: int, first_item: int) -> torch.Tensor:
        """The scores of each query's view of this number with the pooled gallery; a row that lacks it says nothing."""
        self._rows.load(view, first_query)
        tile_qn = self._multiplied(0, first_item)
        if self._by_column is None:
            return tile_qn
        self._by_column.begin(tile_qn)
        for other in range(1, self._columns.most_views(first_item) + 1):
            self._by_column.add(self._multiplied(other, first_item), self._columns.without(other, first_item), 1)
        return self._by_column.end(self._columns.counts(first_item)[None, :])

    def _multiplied(self, view: int, first_item: int) -> torch.Tensor:
        self._columns.load(view, first_item)
        return torch.mm(self._rows.buffer, self._columns.buffer.T, out=self._product)


class _ViewBlock:
    """A buffer that holds one view of each item of a block of one side, and zeros where there is none."""

    def __init__(self, views: Views, pool: Pool | None, buffer: torch.Tensor) -> None:
        self.buffer, self._views, self._device = buffer, views, buffer.device
        self._vectors, self._further = (torch.from_numpy(array).to(self._device) for array in (views.vectors_ND, views.further_XD))
        self._counts_N = pool.first_of(views) if pool is not None else np.zeros(len(views.vectors_ND), dtype=np.int64)
        self._loaded: tuple[int, int] | None = None

    def load(self, view: int, start: int) -> None:
        """Fill the buffer, unless it holds this view of this block already."""
        if self._loaded == (view, start):
            return
        self._loaded = view, start
        size = len(self.buffer)
        if view == 0:
            block_nD = self._vectors[start : start + size]
            self.buffer[: len(block_nD)] = block_nD
            self.buffer[len(block_nD) :] = 0
            return
        has = np.flatnonzero(self._counts_N[start : start + size] >= view)
        self.buffer.zero_()
        places = torch.from_numpy(self._views.offsets[start + has] + view - 1)
        self.buffer[torch.from_numpy(has).to(self._device)] = self._further[places.to(self._device)].to(self.buffer.dtype)

    def most_views(self, start: int) -> int:
        """Further views of the item of a block that has the most."""
        return int(self._counts_N[start : start + len(self.buffer)].max(initial=0))

    def without(self, view: int, start: int) -> torch.Tensor:
        """Places of a block, padding included, that have no view of this number, int64."""
        return torch.from_numpy(np.flatnonzero(self.padded_counts(start) < view)).to(self._device)

    def counts(self, start: int) -> torch.Tensor:
        """Number of further views of each place of a block, padding included."""
        return torch.from_numpy(self.padded_counts(start)).to(self._device, self.buffer.dtype)

    def padded_counts(self, start: int) -> np.ndarray:
        """The same, int64."""
        counts = np.zeros(len(self.buffer), dtype=np.int64)
        block = self._counts_N[start : start + len(self.buffer)]
        counts[: len(block)] = block
        return counts


class _Running:
    """Pooling of tiles as they come, the first being the items themselves."""

    def __init__(self, pool: Pool, scale: float, like_qn: torch.Tensor) -> None:
        self._pool, self._scale = pool, scale
        self._plain, self._pooled = torch.empty_like(like_qn), torch.empty_like(like_qn)

    def begin(self, tile_qn: torch.Tensor) -> None:
        self._plain.copy_(tile_qn)
        self._pooled.copy_(tile_qn)
        if self._pool.pooling == "log-sum-exp":
            self._pooled.mul_(self._scale)

    def add(self, tile_qn: torch.Tensor, without: torch.Tensor, dim: int) -> None:
        """Take in a further view; `without` are the rows (dim 0) or columns (dim 1) that have none. The tile is spoilt."""
        if self._pool.pooling == "max":
            torch.maximum(self._pooled, tile_qn.index_fill_(dim, without, -torch.inf), out=self._pooled)
        else:
            tile_qn.mul_(self._scale).index_fill_(dim, without, -torch.inf)
            torch.logaddexp(self._pooled, tile_qn, out=self._pooled)

    def end(self, counts: torch.Tensor) -> torch.Tensor:
        """The pooled scores; `counts` are the numbers of further views, and broadcast over the tile."""
        if self._pool.pooling == "log-sum-exp":
            self._pooled.sub_(torch.log1p(counts)).div_(self._scale)
        # Exact at weight 1 and where both are equal; an item without further views keeps its plain score to the last bit.
        torch.lerp(self._plain, self._pooled, self._pool.weight, out=self._pooled)
        return torch.where(counts > 0, self._pooled, self._plain, out=self._pooled)

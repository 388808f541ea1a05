"""Tiles of one model's scores in which the views of queries and of gallery items are pooled.

For view number v a block of rows (or columns) contains the v-th view of each item that has one; the scores of the others are masked.
Products are made in buffers of one shape that never move, since the shape of an operand and its address change
last bits (docs/numerics.md). Pooling is incremental, so memory does not grow with the number of views.

Shape letters: N items, D width; q queries and n items of one tile.
"""

from dataclasses import dataclass

import torch

from rerank.combine.views import Pool, Views


@dataclass(frozen=True, eq=False)
class PooledSide:
    """The queries or the gallery of one model, and how their views pool; `pool` is None where there is nothing to pool."""

    views: Views
    pool: Pool | None

    def __len__(self) -> int:
        return len(self.views.vectors_ND)


@dataclass(frozen=True)
class DirectedMember:
    """One model in one direction, its scale that of its logits."""

    queries: PooledSide
    gallery: PooledSide
    scale: float
    device: torch.device


class PooledTiles:
    """Scores (cosines, pooled) of one model by tile, float32; every tile overwrites the one before.

    Without pools a tile is exactly the product of eval/search/exact.py.
    """

    def __init__(self, member: DirectedMember, shape: tuple[int, int]) -> None:
        """`shape` is that of a tile. A query pool by reciprocal rank is left to the caller (`query_pool`)."""
        self.query_pool = member.queries.pool
        self.rows, self._columns = (
            _ViewBlock(side, size, member.device) for side, size in zip((member.queries, member.gallery), shape, strict=True)
        )
        self._product = torch.empty(*shape, device=member.device)
        self._by_row, self._by_column = (
            _RunningPool(side.pool, member.scale, self._product) if side.pool and side.pool.pooling != "reciprocal-rank" else None
            for side in (member.queries, member.gallery)
        )

    def pooled(self, first_query: int, first_item: int) -> torch.Tensor:
        """The scores of the tile that begins there, padding beyond the edge included."""
        tile_qn = self.of_view(0, first_query, first_item)
        if self._by_row is None:
            return tile_qn
        counts_q = self.rows.counts(first_query)
        self._by_row.begin(tile_qn)
        for view in range(1, int(counts_q.max()) + 1):
            self._by_row.add(self.of_view(view, first_query, first_item), counts_q < view, 0)
        return self._by_row.end(counts_q[:, None])

    def of_view(self, view: int, first_query: int, first_item: int) -> torch.Tensor:
        """The scores of each query's view of this number with the pooled gallery; rows that lack the view are undefined."""
        self.rows.load(view, first_query)
        tile_qn = self._multiplied(0, first_item)
        if self._by_column is None:
            return tile_qn
        counts_n = self._columns.counts(first_item)
        self._by_column.begin(tile_qn)
        for other in range(1, int(counts_n.max()) + 1):
            self._by_column.add(self._multiplied(other, first_item), counts_n < other, 1)
        return self._by_column.end(counts_n[None, :])

    def _multiplied(self, view: int, first_item: int) -> torch.Tensor:
        self._columns.load(view, first_item)
        return torch.mm(self.rows.buffer, self._columns.buffer.T, out=self._product)


class _ViewBlock:
    """A buffer with one view of each item of a block of one side, and zeros where there is none."""

    def __init__(self, side: PooledSide, size: int, device: torch.device) -> None:
        self._vectors_ND, self._additional_XD = (
            torch.from_numpy(array).to(device) for array in (side.views.vectors_ND, side.views.additional_XD)
        )
        self._offsets = torch.from_numpy(side.views.offsets)
        self._counts_N = torch.from_numpy(side.views.first(side.pool.number)) if side.pool else torch.zeros(len(side), dtype=torch.int64)
        self.buffer = torch.zeros(size, self._vectors_ND.shape[1], device=device)
        self._loaded: tuple[int, int] | None = None

    def load(self, view: int, start: int) -> None:
        """Fill the buffer, unless it has this view of this block already."""
        if self._loaded == (view, start):
            return
        self._loaded = view, start
        self.buffer.zero_()
        if view == 0:
            block_nD = self._vectors_ND[start : start + len(self.buffer)]
            self.buffer[: len(block_nD)] = block_nD
            return
        has = torch.nonzero(self.counts(start) >= view).flatten()
        places = self._offsets[start + has] + view - 1
        self.buffer[has.to(self.buffer.device)] = self._additional_XD[places.to(self.buffer.device)]

    def counts(self, start: int) -> torch.Tensor:
        """Number of additional views of each place of a block, int64 on the CPU, 0 beyond the last item."""
        counts_n = torch.zeros(len(self.buffer), dtype=torch.int64)
        block = self._counts_N[start : start + len(self.buffer)]
        counts_n[: len(block)] = block
        return counts_n


class _RunningPool:
    """Maximum or log-sum-exp over tiles as they come, the first being the items themselves."""

    def __init__(self, pool: Pool, scale: float, like_qn: torch.Tensor) -> None:
        self._pool, self._scale = pool, scale
        self._plain, self._pooled = torch.empty_like(like_qn), torch.empty_like(like_qn)

    def begin(self, tile_qn: torch.Tensor) -> None:
        self._plain.copy_(tile_qn)
        self._pooled.copy_(tile_qn)
        if self._pool.pooling == "log-sum-exp":
            self._pooled.mul_(self._scale)

    def add(self, tile_qn: torch.Tensor, lacking: torch.Tensor, dim: int) -> None:
        """Add a view; `lacking` marks the rows (dim 0) or columns (dim 1) without one. The tile is overwritten."""
        places = torch.nonzero(lacking).flatten().to(tile_qn.device)
        if self._pool.pooling == "max":
            torch.maximum(self._pooled, tile_qn.index_fill_(dim, places, -torch.inf), out=self._pooled)
        else:
            tile_qn.mul_(self._scale).index_fill_(dim, places, -torch.inf)
            torch.logaddexp(self._pooled, tile_qn, out=self._pooled)

    def end(self, counts: torch.Tensor) -> torch.Tensor:
        """The pooled scores; `counts` are the numbers of additional views, int64, and broadcast over the tile."""
        counts = counts.to(self._plain.device)
        if self._pool.pooling == "log-sum-exp":
            self._pooled.sub_(torch.log1p(counts.float())).div_(self._scale)
        # Exact at weight 1 and where both are equal; an item without additional views keeps its plain score to the last bit.
        torch.lerp(self._plain, self._pooled, self._pool.weight, out=self._pooled)
        return torch.where(counts > 0, self._pooled, self._plain, out=self._pooled)

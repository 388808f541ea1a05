"""What eval/search/exact.py ranks when models are combined: tiles of weighted sums, and whole rows where ranks are combined.

Shape letters: Q queries, N gallery items; q queries and n items of one tile.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from rerank.combine.pooled_tiles import DirectedMember, PooledTiles
from rerank.combine.views import RANK_CONSTANT

ROW_BYTES = 4 << 20
"""Bytes of a block of whole rows as float32; several such are in memory: scores, their order, the sum."""


class SummedTiles:
    """The weighted sum of the members' scores, on the grid of eval/search/exact.py."""

    def __init__(self, members: Sequence[DirectedMember], weights: Sequence[float], *, shape: tuple[int, int]) -> None:
        """A single member has its own scores, whatever its weight."""
        self.num_queries, self.num_items = len(members[0].queries), len(members[0].gallery)
        self.query_block, self.gallery_block = shape
        self._weights = weights
        self._members = [PooledTiles(member, shape) for member in members]
        self._sum = torch.empty(*shape, device=members[0].device) if len(members) > 1 else None

    def row_of_tiles(self, row_block: int, column_blocks: Sequence[int] | None = None) -> Iterator[tuple[range, range, torch.Tensor]]:
        """See `eval.search.exact.Product`."""
        first = row_block * self.query_block
        rows = range(first, min(first + self.query_block, self.num_queries))
        for block in range(-(-self.num_items // self.gallery_block)) if column_blocks is None else column_blocks:
            columns = range(block * self.gallery_block, min((block + 1) * self.gallery_block, self.num_items))
            yield rows, columns, self._summed(rows.start, columns.start)[: len(rows), : len(columns)]

    def _summed(self, first_query: int, first_item: int) -> torch.Tensor:
        if self._sum is None:
            return self._members[0].pooled(first_query, first_item)
        self._sum.zero_()
        for weight, tiles in zip(self._weights, self._members, strict=True):
            self._sum.add_(tiles.pooled(first_query, first_item), alpha=weight)
        return self._sum


class RankedRows:
    """Scores made of ranks: a rank needs its whole row, so a block is a few queries with the whole gallery."""

    def __init__(self, members: Sequence[DirectedMember], weights: Sequence[float], *, column_block: int) -> None:
        """A member's query pool may be reciprocal-rank; several members are combined by reciprocal rank."""
        self.num_queries, self.num_items = len(members[0].queries), len(members[0].gallery)
        self.query_block, self.gallery_block = min(self.num_queries, max(1, ROW_BYTES // (4 * self.num_items))), self.num_items
        self._weights, self._column_block = weights, column_block
        self._members = [PooledTiles(member, (self.query_block, column_block)) for member in members]
        self._row = torch.empty(self.query_block, self.num_items, device=members[0].device)

    def row_of_tiles(self, row_block: int, column_blocks: Sequence[int] | None = None) -> Iterator[tuple[range, range, torch.Tensor]]:
        """See `eval.search.exact.Product`: one tile, the whole row."""
        first = row_block * self.query_block
        rows = range(first, min(first + self.query_block, self.num_queries))
        scores = (self._pooled(tiles, rows) for tiles in self._members)
        if len(self._members) == 1:
            yield rows, range(self.num_items), next(scores)
            return
        sum_qN = torch.zeros(len(rows), self.num_items, dtype=torch.float64, device=self._row.device)
        for weight, scores_qN in zip(self._weights, scores, strict=True):
            sum_qN.add_(reciprocal_ranks(scores_qN), alpha=weight)
        yield rows, range(self.num_items), sum_qN.float()

    def _pooled(self, tiles: PooledTiles, rows: range) -> torch.Tensor:
        """Whole rows of one member's pooled scores, float32."""
        pool = tiles.query_pool
        if pool is None or pool.pooling != "reciprocal-rank":
            return self._whole_rows(rows, partial(tiles.pooled, rows.start))
        counts_q = tiles.rows.counts(rows.start)[: len(rows)]
        plain_qN = reciprocal_ranks(self._whole_rows(rows, partial(tiles.of_view, 0, rows.start)))
        sum_qN = plain_qN.clone()
        for view in range(1, int(counts_q.max()) + 1):
            has = torch.nonzero(counts_q >= view).flatten().to(sum_qN.device)
            scores_qN = self._whole_rows(rows, partial(tiles.of_view, view, rows.start))
            sum_qN.index_add_(0, has, reciprocal_ranks(scores_qN[has]))
        mean_qN = sum_qN.div_(1 + counts_q[:, None].to(sum_qN.device))
        return torch.lerp(plain_qN, mean_qN, pool.weight).float()

    def _whole_rows(self, rows: range, tile_at: Callable[[int], torch.Tensor]) -> torch.Tensor:
        for first_item in range(0, self.num_items, self._column_block):
            part_qn = self._row[: len(rows), first_item : first_item + self._column_block]
            part_qn.copy_(tile_at(first_item)[: len(rows), : part_qn.shape[1]])
        return self._row[: len(rows)]


def reciprocal_ranks(scores_qN: torch.Tensor) -> torch.Tensor:
    """1 / (60 + rank) of every score in its row, float64; ranks from 1 by falling score, equal ones by the lower index.

    >>> (1 / reciprocal_ranks(torch.tensor([[0.5, 0.9, 0.5]])) - 60).round().tolist()
    [[2.0, 1.0, 3.0]]
    """
    num_items = scores_qN.shape[1]
    # One integer for score and index, so that a plain sort orders equal scores by index: the bits of a float32 order as the number does,
    # but for negative ones, whose order is reversed. Adding 0 turns -0 into the 0 it equals.
    bits_qN = (scores_qN + 0.0).view(torch.int32)
    keys_qN = bits_qN.bitwise_xor_((bits_qN >> 31).bitwise_and_(0x7FFFFFFF)).bitwise_not_().long()
    keys_qN.bitwise_left_shift_(32).bitwise_or_(torch.arange(num_items, device=scores_qN.device))
    if keys_qN.device.type == "cpu":
        keys_qN.numpy().sort(axis=1)  # far quicker than torch's
    else:
        keys_qN = keys_qN.sort(dim=1).values
    by_rank_N = 1 / (RANK_CONSTANT + torch.arange(1, num_items + 1, dtype=torch.float64, device=scores_qN.device))
    reciprocal_qN = torch.empty_like(keys_qN, dtype=torch.float64)
    return reciprocal_qN.scatter_(1, keys_qN.bitwise_and_(0xFFFFFFFF), by_rank_N.expand(len(keys_qN), -1))

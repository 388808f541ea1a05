"""Exact search: for every query its top K and the exact rank of each positive, tile by tile, without the whole score matrix.

A product of other shape differs in its last bits (docs/numerics.md), so the grid of tiles is fixed and their tails padded: any number of
processes finds the same ranks. Equal scores are ordered by id, which is index order: a model with constant scores gets
chance, not 1. What is ranked may be any scores that come as such tiles (`Product`), not only cosines of vectors. Shape letters:
Q queries, N gallery items, K depth, D width, P positives; q queries and n items of one tile, p positives of one row of tiles.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.encoder import num_blocks
from eval.errors import NotFinite, UserError
from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes, brought, sent
from eval.search.ranking import Direction, Ranking
from eval.search.ranks import RankAccumulator

QUERY_BLOCK = 1024
GALLERY_BLOCK = 2048

_CACHED_TILES = 2  # the positives of neighbouring queries are mostly in one or two tiles, which are then not computed twice

Tile = tuple[range, range, torch.Tensor]


class Product(Protocol):
    """The scores of every query with every gallery item, as tiles of a fixed grid.

    Attributes:
        num_queries, num_items: Q and N.
        query_block, gallery_block: rows and columns of a tile; the part beyond the edge of the score matrix is cut off.
    """

    num_queries: int
    num_items: int
    query_block: int
    gallery_block: int

    def row_of_tiles(self, row_block: int, column_blocks: Sequence[int] | None = None) -> Iterator[Tile]:
        """(queries, items, scores_qn) of the tiles of one row, or of some of them, left to right; each may overwrite the one before.

        Scores are float32; a tile has the same bits on every process and every time.
        """
        ...


def search_both(
    images_ID: np.ndarray,
    captions_CD: np.ndarray,
    to_text: PositivePairs,
    to_image: PositivePairs,
    depth: int,
    *,
    execution: Execution = ONE_PROCESS,
) -> dict[Direction, Ranking]:
    """Rank captions for every image and images for every caption by the dot product of float32 unit vectors (cosine).

    Args:
        to_text, to_image: the same true pairs, by image and by caption; at least one for each query.
        depth: K, cut to the gallery's size.

    Raises:
        NotFinite: a vector is not finite.
        UserError: a query has no positive.
    """
    check_finite("query", images_ID)
    check_finite("gallery", captions_CD)
    return rank_product_both(CosineTiles(images_ID, captions_CD, execution.device), to_text, to_image, depth, execution.processes)


def rank_product(
    direction: Direction, product: Product, positives: PositivePairs, depth: int, processes: Processes = Processes()
) -> Ranking:
    """Rank a gallery for every query by the scores of a product, whose rows are the queries.

    Raises:
        UserError: a query has no positive.
    """
    _check_positives(positives)
    scores_P = np.zeros(len(positives.indices_P), dtype=np.float32)
    accumulator = RankAccumulator(positives, scores_P, product.num_items, depth)
    whole_rows = product.num_items <= product.gallery_block  # then the row's only tile holds the scores of its positives
    for block in processes.share_of(num_blocks(product.num_queries, product.query_block)):
        own = _RowPositives(product, positives, block)
        cached = {} if whole_rows else own.score(product, scores_P, _CACHED_TILES)
        for rows, columns, tile_qn in _row_of_tiles(product, block, cached):
            if whole_rows:
                own.read(tile_qn, columns, scores_P)
            accumulator.update(tile_qn, rows.start, columns.start)
        accumulator.finalize(block * product.query_block)
    return accumulator.ranking(direction, processes)


def rank_product_both(
    product: Product, to_text: PositivePairs, to_image: PositivePairs, depth: int, processes: Processes = Processes()
) -> dict[Direction, Ranking]:
    """Both directions from one product, whose rows are images and whose columns are captions; image to text is :func:`rank_product`'s.

    Raises:
        UserError: a query has no positive.
    """
    _check_positives(to_text)
    _check_positives(to_image)
    scores_P = _positive_scores(product, to_text, processes)
    by_caption_P = np.lexsort((to_text.query_P, to_text.indices_P))
    images = RankAccumulator(to_text, scores_P, product.num_items, depth)
    captions = RankAccumulator(to_image, scores_P[by_caption_P], product.num_queries, depth)
    for block in processes.share_of(num_blocks(product.num_queries, product.query_block)):
        for rows, columns, tile_qn in product.row_of_tiles(block):
            images.update(tile_qn, rows.start, columns.start)
            captions.update(tile_qn, columns.start, rows.start, by_column=True)
        images.finalize(block * product.query_block)
    return {"image_to_text": images.ranking("image_to_text", processes), "text_to_image": captions.ranking("text_to_image", processes)}


class CosineTiles:
    """The products of queries and gallery: QUERY_BLOCK x GALLERY_BLOCK each."""

    def __init__(self, queries_QD: np.ndarray, gallery_ND: np.ndarray, device: torch.device) -> None:
        self.num_queries, self.num_items = len(queries_QD), len(gallery_ND)
        self.query_block, self.gallery_block = QUERY_BLOCK, GALLERY_BLOCK
        self._queries, self._gallery = torch.from_numpy(queries_QD), torch.from_numpy(gallery_ND).to(device)
        # Operands are copied into buffers: an array's place in memory may change the last bits of a product.
        width = queries_QD.shape[1]
        self._rows = torch.empty(QUERY_BLOCK, width, device=device)
        self._columns = torch.empty(GALLERY_BLOCK, width, device=device)
        self._tile = torch.empty(QUERY_BLOCK, GALLERY_BLOCK, device=device)

    def row_of_tiles(self, row_block: int, column_blocks: Sequence[int] | None = None) -> Iterator[Tile]:
        """See :class:`Product`."""
        rows = _fill(self._rows, self._queries, row_block * self.query_block)
        for block in range(num_blocks(self.num_items, self.gallery_block)) if column_blocks is None else column_blocks:
            columns = _fill(self._columns, self._gallery, block * self.gallery_block)
            torch.mm(self._rows, self._columns.T, out=self._tile)
            yield rows, columns, self._tile[: len(rows), : len(columns)]


def _fill(buffer: torch.Tensor, vectors: torch.Tensor, start: int) -> range:
    """Copy a block of vectors into a buffer, padded with zeros; returns the range of vectors."""
    block = vectors[start : start + len(buffer)]
    buffer[: len(block)] = sent(block, buffer.device)
    buffer[len(block) :] = 0
    return range(start, start + len(block))


def _row_of_tiles(product: Product, row_block: int, cached: dict[int, Tile]) -> Iterator[Tile]:
    """The tiles of one row, left to right; cached ones (by block of columns) are not computed again."""
    for block in range(num_blocks(product.num_items, product.gallery_block)):
        if block in cached:
            yield cached.pop(block)
        else:
            yield from product.row_of_tiles(row_block, [block])


class _RowPositives:
    """The positive pairs of the queries of one row of tiles."""

    def __init__(self, product: Product, positives: PositivePairs, row_block: int) -> None:
        first = row_block * product.query_block
        offsets = positives.offsets[first : min(first + product.query_block, product.num_queries) + 1]
        self._row_block = row_block
        self._span = slice(int(offsets[0]), int(offsets[-1]))
        self._row_p = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        self._item_p = positives.indices_P[self._span]

    def score(self, product: Product, scores_P: np.ndarray, num_cached: int) -> dict[int, Tile]:
        """Fill in their scores in `scores_P`, from the same tiles as the search; returns the first of these tiles."""
        blocks = np.unique(self._item_p // product.gallery_block).tolist()
        cached: dict[int, Tile] = {}
        under_way = []
        for rows, columns, tile_qn in product.row_of_tiles(self._row_block, blocks):
            under_way.append(self._read(tile_qn, columns))
            if len(cached) < num_cached:
                cached[columns.start // product.gallery_block] = rows, columns, tile_qn.clone()
        for here_p, scores_p in under_way:
            scores_P[self._span][here_p] = scores_p().numpy()
        return cached

    def read(self, tile_qn: torch.Tensor, columns: range, scores_P: np.ndarray) -> None:
        """Fill in the scores of those in one tile."""
        here_p, scores_p = self._read(tile_qn, columns)
        scores_P[self._span][here_p] = scores_p().numpy()

    def _read(self, tile_qn: torch.Tensor, columns: range) -> tuple[np.ndarray, Callable[[], torch.Tensor]]:
        """(which positives are in a tile, what gives their scores once they have come from where it lies)."""
        here_p = (self._item_p >= columns.start) & (self._item_p < columns.stop)
        places = self._row_p[here_p], self._item_p[here_p] - columns.start
        return here_p, brought(tile_qn[tuple(sent(torch.from_numpy(one), tile_qn.device) for one in places)])


def _positive_scores(product: Product, positives: PositivePairs, processes: Processes) -> np.ndarray:
    """Score of every positive pair, float32 of shape (P,), on every process."""
    scores_P = np.zeros(len(positives.indices_P), dtype=np.float32)
    for block in processes.share_of(num_blocks(product.num_queries, product.query_block)):
        _RowPositives(product, positives, block).score(product, scores_P, num_cached=0)
    return np.sum(processes.gather(scores_P[None]), axis=0)[0]  # each pair is a score on one process and 0 on the others


def check_finite(noun: str, vectors: np.ndarray) -> None:
    """Refuse vectors that cannot be ranked, called `noun` in the message.

    Raises:
        NotFinite: a vector is not finite.
    """
    bad = []
    for start in range(0, len(vectors), QUERY_BLOCK):
        finite = np.isfinite(vectors[start : start + QUERY_BLOCK]).all(axis=1)
        bad += (np.flatnonzero(~finite) + start).tolist()
    if bad:
        raise NotFinite(f"{len(bad)} {noun} vector(s) are not finite, at index {bad[:5]}: they cannot be ranked")


def _check_positives(positives: PositivePairs) -> None:
    without = np.flatnonzero(positives.counts == 0)
    if len(without):
        raise UserError(f"{len(without)} queries have no relevant item, at index {without[:5].tolist()}: give each image a caption")

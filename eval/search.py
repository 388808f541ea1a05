"""Exact search: for every query its top K and the exact rank of each of its positives, tile by tile, never the whole matrix.

A product of other shape differs in its last bits (facts.md), so the grid of tiles is fixed and their tails padded: any number of
processes finds the same ranks. Equal scores are ordered by id, which is index order: a model that says the same of everything gets
chance, not 1. Shape letters: Q queries, N gallery items, K depth, D width, P positives; q queries and n items of one tile.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from eval.dataset import PositivePairs
from eval.errors import UserError
from eval.processes import Processes
from eval.ranking import Direction, Ranking
from eval.standing import Standing

QUERY_BLOCK = 1024
GALLERY_BLOCK = 2048


def search(
    direction: Direction,
    queries_QD: np.ndarray,
    gallery_ND: np.ndarray,
    positives: PositivePairs,
    depth: int,
    *,
    device: torch.device | str = "cpu",
    processes: Processes = Processes(),
) -> Ranking:
    """Rank a gallery for every query by the dot product of unit vectors (cosine), float32.

    Args:
        direction: names the result; the queries are its first noun.
        queries_QD, gallery_ND: float32 unit vectors.
        positives: the gallery items right for each query; every query needs at least one.
        depth: K, how many of the best to keep; cut to the gallery's size.

    Raises:
        UserError: a vector is not finite, or a query has no positive.
    """
    _check(queries_QD, gallery_ND, positives)
    grid = _Grid(queries_QD, gallery_ND, torch.device(device))
    standing = Standing(positives, _positive_scores(grid, positives, processes), len(gallery_ND), depth)
    for block in processes.share_of(grid.num_row_blocks):
        for rows, columns, tile_qn in grid.row_of_tiles(block):
            standing.absorb_rows(tile_qn, rows.start, columns.start)
        standing.settle(block * QUERY_BLOCK)
    return standing.ranking(direction, processes)


def search_both(
    images_ID: np.ndarray,
    captions_CD: np.ndarray,
    to_text: PositivePairs,
    to_image: PositivePairs,
    depth: int,
    *,
    device: torch.device | str = "cpu",
    processes: Processes = Processes(),
) -> dict[Direction, Ranking]:
    """Both directions of :func:`search` from one product; image to text equals it bit for bit.

    Args:
        to_text, to_image: the same true pairs, by image and by caption.

    Raises:
        UserError: a vector is not finite, or a query has no positive.
    """
    _check(images_ID, captions_CD, to_text)
    _check(captions_CD, images_ID, to_image)
    grid = _Grid(images_ID, captions_CD, torch.device(device))
    scores_P = _positive_scores(grid, to_text, processes)
    by_caption_P = np.lexsort((to_text.query_P, to_text.indices_P))
    images = Standing(to_text, scores_P, len(captions_CD), depth)
    captions = Standing(to_image, scores_P[by_caption_P], len(images_ID), depth)
    for block in processes.share_of(grid.num_row_blocks):
        for rows, columns, tile_qn in grid.row_of_tiles(block):
            images.absorb_rows(tile_qn, rows.start, columns.start)
            captions.absorb_columns(tile_qn, columns.start, rows.start)
        images.settle(block * QUERY_BLOCK)
    return {"image_to_text": images.ranking("image_to_text", processes), "text_to_image": captions.ranking("text_to_image", processes)}


class _Grid:
    """The fixed grid of products of queries and gallery: QUERY_BLOCK x GALLERY_BLOCK each, whatever lies beyond the edge cut off."""

    def __init__(self, queries_QD: np.ndarray, gallery_ND: np.ndarray, device: torch.device) -> None:
        self.device = device
        self._queries, self._gallery = torch.from_numpy(queries_QD), torch.from_numpy(gallery_ND).to(device)
        # Operands are copied into buffers of their own: where an array lies in memory may change the last bits of a product too.
        width = queries_QD.shape[1]
        self._rows = torch.empty(QUERY_BLOCK, width, device=device)
        self._columns = torch.empty(GALLERY_BLOCK, width, device=device)
        self._tile = torch.empty(QUERY_BLOCK, GALLERY_BLOCK, device=device)
        self.num_row_blocks = -(-len(queries_QD) // QUERY_BLOCK)
        self.num_column_blocks = -(-len(gallery_ND) // GALLERY_BLOCK)

    def row_of_tiles(self, row_block: int, column_blocks: Sequence[int] | None = None) -> Iterator[tuple[range, range, torch.Tensor]]:
        """(queries, items, scores_qn) of the tiles of one row, or of chosen ones, left to right; each overwrites the one before."""
        rows = _fill(self._rows, self._queries, row_block * QUERY_BLOCK)
        for block in range(self.num_column_blocks) if column_blocks is None else column_blocks:
            columns = _fill(self._columns, self._gallery, block * GALLERY_BLOCK)
            torch.mm(self._rows, self._columns.T, out=self._tile)
            yield rows, columns, self._tile[: len(rows), : len(columns)]


def _fill(buffer: torch.Tensor, vectors: torch.Tensor, start: int) -> range:
    """Put a block of vectors, and zeros behind its end, into a buffer; which vectors it holds."""
    block = vectors[start : start + len(buffer)]
    buffer[: len(block)] = block
    buffer[len(block) :] = 0
    return range(start, start + len(block))


def _positive_scores(grid: _Grid, positives: PositivePairs, processes: Processes) -> np.ndarray:
    """Score of every positive pair, float32 of shape (P,), out of the very products it will be compared with: on every process."""
    scores_P = np.zeros(len(positives.indices_P), dtype=np.float32)
    for block in processes.share_of(grid.num_row_blocks):
        first = block * QUERY_BLOCK
        span = slice(positives.offsets[first], positives.offsets[min(first + QUERY_BLOCK, len(positives.offsets) - 1)])
        rows_P, columns_P = positives.query_P[span] - first, positives.indices_P[span]
        found_P = scores_P[span]
        blocks_P = columns_P // GALLERY_BLOCK
        for _, columns, tile_qn in grid.row_of_tiles(block, np.unique(blocks_P).tolist()):
            here_P = blocks_P == columns.start // GALLERY_BLOCK
            places = torch.from_numpy(rows_P[here_P]), torch.from_numpy(columns_P[here_P] - columns.start)
            found_P[here_P] = tile_qn[places[0].to(tile_qn.device), places[1].to(tile_qn.device)].cpu().numpy()
    return np.sum(processes.gather(scores_P[None]), axis=0)[0]  # each pair is a score on one process and 0 on the others


def _check(queries_QD: np.ndarray, gallery_ND: np.ndarray, positives: PositivePairs) -> None:
    for noun, vectors in (("query", queries_QD), ("gallery", gallery_ND)):
        bad = []
        for start in range(0, len(vectors), QUERY_BLOCK):
            finite = np.isfinite(vectors[start : start + QUERY_BLOCK]).all(axis=1)
            bad += (np.flatnonzero(~finite) + start).tolist()
        if bad:
            raise UserError(f"{len(bad)} {noun} vector(s) are not finite, at index {bad[:5]}: they cannot be ranked")
    without = np.flatnonzero(positives.counts == 0)
    if len(without):
        raise UserError(f"{len(without)} queries have no right answer, at index {without[:5].tolist()}: give each image a caption")

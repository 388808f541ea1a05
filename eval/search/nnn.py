"""Nearest-neighbour normalisation (NNN): a gallery item that is near everything is marked down by how near it is to reference queries.

    score(q, i) = cosine(q, i) - c_i,    c_i = alpha x (mean of the k best cosines of item i with a bank of reference queries)

Source: Chowdhury et al. 2024, EMNLP, "Nearest Neighbor Normalization Improves Multimodal Retrieval", arXiv 2410.24114. The correction is
one number a gallery item, found once; a query costs one subtraction an item more. The bank is of another split than what is measured: the
train split's captions where images are ranked, its images where captions are. Shape letters: N gallery items, B of the bank, D width,
K different numbers k.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from eval.dataset.retrieval_set import PositivePairs, RetrievalSet
from eval.encoder.embedding_files import EmbeddingRows, InMemoryRows
from eval.execution import ONE_PROCESS, Execution
from eval.search.exact import CosineTiles, Product, Tile, check_finite, rank_product
from eval.search.ranking import Direction, Ranking
from eval.search.retrieve import Embedded
from eval.search.streamed import stream_search


def nearest_means(gallery: EmbeddingRows, bank: EmbeddingRows, numbers: Sequence[int], *, execution: Execution = ONE_PROCESS) -> np.ndarray:
    """Mean of the k best cosines of each gallery item with the bank, float64 of shape (K, N): a row for each k; call on every process.

    Args:
        numbers: k, 1 or more; where the bank is smaller, all of it.
    """
    none = PositivePairs(np.zeros(gallery.num_rows + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    best_NK = stream_search(gallery, bank, none, max(numbers), execution=execution).scores_QK
    best_NK = best_NK[:, : np.isfinite(best_NK).all(axis=0).sum()]  # of the bank's pictures that do not decode there is no score
    sums_NK = best_NK.cumsum(axis=1, dtype=np.float64)
    used = [min(number, sums_NK.shape[1]) for number in numbers]
    return np.stack([sums_NK[:, number - 1] / number for number in used])


class CorrectedTiles:
    """Tiles of scores less a correction of each gallery item; see `eval.search.exact.Product`."""

    def __init__(self, product: Product, correction_N: np.ndarray, device: torch.device) -> None:
        self.num_queries, self.num_items = product.num_queries, product.num_items
        self.query_block, self.gallery_block = product.query_block, product.gallery_block
        self._product, self._correction_N = product, torch.from_numpy(correction_N.astype(np.float32)).to(device)

    def row_of_tiles(self, row_block: int, column_blocks: Sequence[int] | None = None) -> Iterator[Tile]:
        """See `eval.search.exact.Product`."""
        for rows, columns, tile_qn in self._product.row_of_tiles(row_block, column_blocks):
            yield rows, columns, tile_qn.sub_(self._correction_N[columns.start : columns.stop])


def gallery_means(
    embedded: Embedded, bank: Embedded, direction: Direction, numbers: Sequence[int], *, execution: Execution = ONE_PROCESS
) -> np.ndarray:
    """`nearest_means` of the side that is ranked in a direction, with the bank's side that asks; float64 of shape (K, N)."""
    to_text = direction == "image_to_text"
    gallery_ND, bank_BD = (embedded.captions_CD, bank.images_ID) if to_text else (embedded.images_ID, bank.captions_CD)
    return nearest_means(InMemoryRows(gallery_ND), InMemoryRows(bank_BD), numbers, execution=execution)


def rank_corrected(
    embedded: Embedded,
    dataset: RetrievalSet,
    corrections: Mapping[Direction, np.ndarray],
    depth: int,
    *,
    execution: Execution = ONE_PROCESS,
) -> dict[Direction, Ranking]:
    """Exact ranks by cosine less a correction of each gallery item, in the directions that have one.

    Args:
        corrections: float, of shape (N,), of the captions for image to text and of the images for text to image.
        depth: length of each query's top list, cut to the gallery's size.

    Raises:
        NotFinite: a correction is not finite.
    """
    found: dict[Direction, Ranking] = {}
    for direction, correction_N in corrections.items():
        check_finite("correction", correction_N[:, None])
        sides = embedded.images_ID, embedded.captions_CD
        product = CosineTiles(*(sides if direction == "image_to_text" else sides[::-1]), embedded.device)
        corrected = CorrectedTiles(product, correction_N, embedded.device)
        found[direction] = rank_product(direction, corrected, dataset.positives(direction), depth, execution.processes)
    return found

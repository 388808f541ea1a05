"""Exact search: for every query its top K and the exact rank of each of its positives, in blocks, never the whole matrix.

A product in blocks of another shape differs in its last bits (facts.md), so the grid of blocks is fixed and its tails padded: any number of
processes finds the same ranks. Equal scores are ordered by id, which is index order: a model that says the same of everything gets
chance, not 1. Shape letters: Q queries, N gallery items, K depth, D width, P positives, q queries of a block.
"""

import numpy as np
import torch

from eval.dataset import PositivePairs
from eval.errors import UserError
from eval.processes import Processes
from eval.ranking import Direction, Ranking

QUERY_BLOCK = 128
GALLERY_BLOCK = 4096


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
    depth = min(depth, len(gallery_ND))
    gallery = _padded(gallery_ND, GALLERY_BLOCK, device)
    num_blocks = -(-len(queries_QD) // QUERY_BLOCK)
    tops, scores, ranks = [], [], []
    for number in processes.share_of(num_blocks):
        start = number * QUERY_BLOCK
        stop = min(start + QUERY_BLOCK, len(queries_QD))
        panel_qN = _panel(queries_QD[start:stop], gallery, len(gallery_ND))
        top_qK, score_qK = top_k(panel_qN, depth)
        offsets = positives.offsets[start : stop + 1]
        ranks.append(_positive_ranks(panel_qN, offsets - offsets[0], positives.indices_P[offsets[0] : offsets[-1]]))
        tops.append(top_qK.cpu().numpy())
        scores.append(score_qK.cpu().numpy())
    return Ranking(
        direction,
        np.concatenate(processes.gather_blocks(tops, num_blocks)),
        np.concatenate(processes.gather_blocks(scores, num_blocks)),
        positives.offsets,
        positives.indices_P,
        np.concatenate(processes.gather_blocks(ranks, num_blocks)),
    )


def top_k(panel_qN: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (int64) and scores of the `depth` best of each row, best first, equal scores by the lower index."""
    num_items = panel_qN.shape[1]
    values_qK, indices_qK = torch.topk(panel_qN, min(depth + 1, num_items), dim=1)  # one more shows where a tie crosses the K-th place
    crossing_q = values_qK[:, -1] == values_qK[:, depth - 1] if depth < num_items else values_qK.new_zeros(len(values_qK), dtype=torch.bool)
    values_qK, indices_qK = values_qK[:, :depth], indices_qK[:, :depth]
    # torch.topk orders equal scores as it likes. Inside the K found: sort by index, then stably by score.
    order = torch.argsort(indices_qK, dim=1)
    values_qK, indices_qK = values_qK.gather(1, order), indices_qK.gather(1, order)
    order = torch.argsort(values_qK, dim=1, descending=True, stable=True)
    values_qK, indices_qK = values_qK.gather(1, order), indices_qK.gather(1, order)
    # Across the K-th place: where more items reach the last score than there is room for, the lowest indices go in.
    for row in torch.nonzero(crossing_q).flatten().tolist():
        last = values_qK[row, -1]
        above = int((values_qK[row] > last).sum())
        indices_qK[row, above:] = torch.nonzero(panel_qN[row] == last).flatten()[: depth - above]
    return indices_qK, values_qK


def _check(queries_QD: np.ndarray, gallery_ND: np.ndarray, positives: PositivePairs) -> None:
    for noun, vectors in (("query", queries_QD), ("gallery", gallery_ND)):
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise UserError(f"{len(bad)} {noun} vector(s) are not finite, at index {bad[:5].tolist()}: they cannot be ranked")
    without = np.flatnonzero(positives.counts == 0)
    if len(without):
        raise UserError(f"{len(without)} queries have no right answer, at index {without[:5].tolist()}: give each image a caption")


def _padded(vectors_ND: np.ndarray, block: int, device: torch.device | str) -> torch.Tensor:
    """Vectors on the device with rows of zeros up to a whole number of blocks."""
    rows = -(-len(vectors_ND) // block) * block
    padded = torch.zeros(rows, vectors_ND.shape[1], dtype=torch.float32, device=device)
    padded[: len(vectors_ND)] = torch.from_numpy(vectors_ND).to(device)
    return padded


def _panel(queries_qD: np.ndarray, gallery: torch.Tensor, num_items: int) -> torch.Tensor:
    """Scores of one block of queries against the gallery, made of products of one fixed shape."""
    block = _padded(queries_qD, QUERY_BLOCK, gallery.device)
    panel = torch.empty(QUERY_BLOCK, len(gallery), dtype=torch.float32, device=gallery.device)
    for start in range(0, len(gallery), GALLERY_BLOCK):
        panel[:, start : start + GALLERY_BLOCK] = block @ gallery[start : start + GALLERY_BLOCK].T
    return panel[: len(queries_qD), :num_items]


def _positive_ranks(panel_qN: torch.Tensor, offsets: np.ndarray, indices_P: np.ndarray) -> np.ndarray:
    """Rank from 1 of each positive in its query's row: one more than those strictly better, and than the equal ones of lower index.

    One sort a row and a binary search a positive: a caption that is true of a thousand images costs no thousand passes.
    """
    counts = np.diff(offsets)
    row_P = np.repeat(np.arange(len(counts)), counts)
    column_P = np.arange(len(indices_P)) - offsets[:-1][row_P]
    padded_qM = np.zeros((len(counts), int(counts.max(initial=0))), dtype=np.int64)
    padded_qM[row_P, column_P] = indices_P
    scores_qM = panel_qN.gather(1, torch.from_numpy(padded_qM).to(panel_qN.device))
    sorted_qN = _sorted_rows(panel_qN)
    up_to_qM = torch.searchsorted(sorted_qN, scores_qM, right=True)
    equal_P = (up_to_qM - torch.searchsorted(sorted_qN, scores_qM)).cpu().numpy()[row_P, column_P]
    ranks_P = panel_qN.shape[1] - up_to_qM.cpu().numpy()[row_P, column_P] + 1
    tied_P = np.flatnonzero(equal_P > 1)
    groups: dict[tuple[int, float], list[int]] = {}
    for place, score in zip(tied_P, scores_qM.cpu().numpy()[row_P[tied_P], column_P[tied_P]].tolist(), strict=True):
        groups.setdefault((int(row_P[place]), score), []).append(int(place))
    for (row, score), places in groups.items():
        equal = torch.nonzero(panel_qN[row] == score).flatten().cpu().numpy()
        ranks_P[places] += np.searchsorted(equal, indices_P[places])
    return ranks_P


def _sorted_rows(panel_qN: torch.Tensor) -> torch.Tensor:
    """Each row's scores, ascending; on a CPU by numpy, whose sort of values is ten times torch's."""
    if panel_qN.device.type == "cpu":
        return torch.from_numpy(np.sort(panel_qN.numpy(), axis=1))
    return torch.sort(panel_qN, dim=1).values

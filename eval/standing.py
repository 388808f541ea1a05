"""Where the queries of one direction stand while tiles of scores stream by: the best K so far, and the number above each positive.

Shape letters: Q queries, K depth, P positives; q queries, n items and p positives of one tile.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from eval.dataset import PositivePairs
from eval.processes import Processes
from eval.ranking import Direction, Ranking

_MERGED_AT_ONCE = 65_536
_ROWS_PER_THREAD = 64


class Standing:
    """The running result of a search: exact however the tiles come, as long as those of a query come in the order of their items."""

    def __init__(self, positives: PositivePairs, scores_P: np.ndarray, num_items: int, depth: int, device: torch.device) -> None:
        """Begin; `scores_P` is the score of each positive pair, float32, as the tiles will hold it."""
        num_queries = len(positives.offsets) - 1
        self.positives, self.depth = positives, min(depth, num_items)
        self._scores_QK = torch.full((num_queries, self.depth), -torch.inf, device=device)
        self._indices_QK = torch.full((num_queries, self.depth), num_items, dtype=torch.int64, device=device)
        self._above_P = np.zeros(len(positives.indices_P), dtype=np.int64)
        self._scores_P = scores_P

    def absorb(self, tile_qn: torch.Tensor, first_query: int, first_item: int) -> None:
        """Count a tile of scores in; it may be overwritten afterwards."""
        queries = slice(first_query, first_query + len(tile_qn))
        indices_qk, scores_qk = top_k(tile_qn, min(self.depth, tile_qn.shape[1]))
        joined = torch.cat([self._scores_QK[queries], scores_qk], 1), torch.cat([self._indices_QK[queries], indices_qk + first_item], 1)
        self._scores_QK[queries], self._indices_QK[queries] = _best(*joined, self.depth)
        offsets = self.positives.offsets[first_query : queries.stop + 1]
        span = slice(int(offsets[0]), int(offsets[-1]))
        self._above_P[span] += _num_above(tile_qn, offsets - offsets[0], self._scores_P[span], self.positives.indices_P[span] - first_item)

    def ranking(self, direction: Direction, processes: Processes) -> Ranking:
        """The result, on every process, when each has absorbed its share of the tiles."""
        scores_QK, indices_QK = self._scores_QK.cpu(), self._indices_QK.cpu()
        if processes.world_size > 1:
            for start in range(0, len(scores_QK), _MERGED_AT_ONCE):
                part = slice(start, start + _MERGED_AT_ONCE)
                scores = torch.from_numpy(np.concatenate(processes.gather(scores_QK[part].numpy()[None]), axis=2)[0])
                indices = torch.from_numpy(np.concatenate(processes.gather(indices_QK[part].numpy()[None]), axis=2)[0])
                scores_QK[part], indices_QK[part] = _best(scores, indices, self.depth)
        above_P = np.sum(processes.gather(self._above_P[None]), axis=0)[0]
        return Ranking(direction, indices_QK.numpy(), scores_QK.numpy(), self.positives.offsets, self.positives.indices_P, above_P + 1)


def top_k(tile_qn: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (int64) and scores of the `depth` best of each row, best first, equal scores by the lower index."""
    num_items = tile_qn.shape[1]
    scores_qk, indices_qk = torch.topk(tile_qn, min(depth + 1, num_items), dim=1)  # one more shows where a tie crosses the K-th place
    tied_q = (scores_qk[:, 1:] == scores_qk[:, :-1]).any(dim=1)
    crossing_q = scores_qk[:, -1] == scores_qk[:, depth - 1] if depth < num_items else torch.zeros_like(tied_q)
    scores_qk, indices_qk = scores_qk[:, :depth], indices_qk[:, :depth]
    if tied_q.any():  # torch.topk orders equal scores as it likes
        scores_qk, indices_qk = _in_order(scores_qk, indices_qk)
    # Across the K-th place: where more items reach the last score than there is room for, the lowest indices go in.
    for row in torch.nonzero(crossing_q).flatten().tolist():
        last = scores_qk[row, -1]
        above = int((scores_qk[row] > last).sum())
        indices_qk[row, above:] = torch.nonzero(tile_qn[row] == last).flatten()[: depth - above]
    return indices_qk, scores_qk


def _best(scores_qm: torch.Tensor, indices_qm: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, indices) of the `depth` best of each row of candidates, by score and then by index."""
    scores_qk, place_qk = torch.sort(scores_qm, dim=1, descending=True)
    if (scores_qk[:, 1:] == scores_qk[:, :-1]).any():
        scores_qk, indices_qk = _in_order(scores_qm, indices_qm)
        return scores_qk[:, :depth], indices_qk[:, :depth]
    return scores_qk[:, :depth], indices_qm.gather(1, place_qk[:, :depth])


def _in_order(scores_qm: torch.Tensor, indices_qm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort each row by index, then stably by falling score."""
    order = torch.argsort(indices_qm, dim=1)
    scores_qm, indices_qm = scores_qm.gather(1, order), indices_qm.gather(1, order)
    order = torch.argsort(scores_qm, dim=1, descending=True, stable=True)
    return scores_qm.gather(1, order), indices_qm.gather(1, order)


def _num_above(tile_qn: torch.Tensor, offsets: np.ndarray, scores_p: np.ndarray, own_p: np.ndarray) -> np.ndarray:
    """How many of a tile's items stand above each positive of its queries: the strictly better, and the equal ones of lower index.

    One sort a row and a binary search a positive: a caption that is true of a thousand images costs no thousand passes.

    Args:
        offsets: positives of row r at offsets[r]:offsets[r + 1].
        own_p: index of each positive counted from the tile's first item: below 0 or beyond the tile where it lies in another.
    """
    counts = np.diff(offsets)
    row_p = np.repeat(np.arange(len(counts)), counts)
    place_p = np.arange(len(scores_p)) - offsets[:-1][row_p]
    scores_qm = np.zeros((len(counts), int(counts.max(initial=0))), dtype=np.float32)
    scores_qm[row_p, place_p] = scores_p
    wanted = torch.from_numpy(scores_qm).to(tile_qn.device)
    sorted_qn = _sorted_rows(tile_qn)
    up_to_p = torch.searchsorted(sorted_qn, wanted, right=True).cpu().numpy()[row_p, place_p]
    equal_p = up_to_p - torch.searchsorted(sorted_qn, wanted).cpu().numpy()[row_p, place_p]
    num_items = tile_qn.shape[1]
    above_p = num_items - up_to_p
    above_p[own_p >= num_items] += equal_p[own_p >= num_items]
    inside_p = np.flatnonzero((own_p > 0) & (own_p < num_items) & (equal_p > 1))
    groups: dict[tuple[int, float], list[int]] = {}
    for place in inside_p.tolist():
        groups.setdefault((int(row_p[place]), float(scores_p[place])), []).append(place)
    for (row, score), places in groups.items():
        equal = torch.nonzero(tile_qn[row] == score).flatten().cpu().numpy()
        above_p[places] += np.searchsorted(equal, own_p[places])
    return above_p


def _sorted_rows(tile_qn: torch.Tensor) -> torch.Tensor:
    """Each row's scores, ascending; on a CPU by numpy, whose sort of values is ten times torch's, in as many threads as torch may use."""
    if tile_qn.device.type != "cpu":
        return torch.sort(tile_qn, dim=1).values
    tile, sorted_qn = tile_qn.numpy(), np.empty(tile_qn.shape, dtype=np.float32)
    num_threads = min(torch.get_num_threads(), max(1, len(tile) // _ROWS_PER_THREAD))
    edges = [len(tile) * part // num_threads for part in range(num_threads + 1)]

    def sort(start: int, stop: int) -> None:
        sorted_qn[start:stop] = tile[start:stop]
        sorted_qn[start:stop].sort(axis=1)

    with ThreadPoolExecutor(num_threads) as threads:  # numpy sorts without holding the interpreter
        list(threads.map(sort, edges, edges[1:]))
    return torch.from_numpy(sorted_qn)

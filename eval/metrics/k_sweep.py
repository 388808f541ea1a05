"""How much of a reranker's gain do how many candidates buy? Recalls at each K, and the ceiling no reranker of the same K can pass.

Shape letters: Q queries, S resamples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.metrics.metrics import RECALL_AT, recall_at_k
from eval.metrics.significance import ImageSums, interval
from eval.metrics.stage_metrics import RECALLS, StageMetrics
from eval.search.ranking import DIRECTIONS, Direction
from eval.search.stage import Sweep


def sweep_sizes(top_k: int) -> list[int]:
    """The K to look at: 1, 2, 4, ... and top_k.

    >>> sweep_sizes(12)
    [1, 2, 4, 8, 12]
    """
    return [2**power for power in range(top_k.bit_length()) if 2**power < top_k] + [top_k]


_RANK_AT_K = pa.list_(pa.struct([("k", pa.int32()), ("rank", pa.int64())]))


def sweep_column(sweep: Sweep, direction: Direction, num_queries: int) -> pa.Array:
    """queries.parquet's `rank_at_k` for one stage: of each query (k, rank) for every K of the sweep; null for a stage without one."""
    if not sweep:
        return pa.nulls(num_queries, _RANK_AT_K)
    sizes = np.tile(np.array(list(sweep), dtype=np.int32), num_queries)
    ranks = np.stack([ranks[direction] for ranks in sweep.values()], axis=1).astype(np.int64).ravel()
    pairs = pa.StructArray.from_arrays([pa.array(sizes), pa.array(ranks)], fields=list(_RANK_AT_K.value_type))
    offsets = pa.array(np.arange(num_queries + 1, dtype=np.int32) * len(sweep))
    return pa.ListArray.from_arrays(offsets, pairs, type=_RANK_AT_K)


def read_sweep(queries: pa.Table, stage: str) -> Sweep:
    """The sweep of one stage, read back from the rows of queries.parquet; empty for a stage without one."""
    found: dict[int, dict[Direction, np.ndarray]] = {}
    for direction in DIRECTIONS:
        rows = queries.filter(pc.and_(pc.equal(queries["stage"], stage), pc.equal(queries["direction"], direction)))["rank_at_k"]
        if rows.null_count:
            return {}
        pairs = rows.combine_chunks().flatten()
        num_sizes = len(pairs) // len(rows)  # every row has the same
        ranks_QK = pairs.field("rank").to_numpy().reshape(-1, num_sizes)
        for place, k in enumerate(pairs.field("k")[:num_sizes].to_pylist()):
            found.setdefault(k, {})[direction] = ranks_QK[:, place]
    return found


def sweep_rows(sweep: Sweep, first: Mapping[Direction, StageMetrics], weights_SI: np.ndarray) -> list[dict[str, Any]]:
    """report.json's `k_sweep`: recalls at K = 1, 2, 4, ... and the largest, with the 95% interval of R@1 (bootstrap over images)."""
    rows = []
    for k in (k for k in sweep_sizes(max(sweep, default=1)) if k in sweep):
        for direction in DIRECTIONS:
            rows.append({"k": k, "direction": direction, **recall_row(sweep[k][direction], first[direction].image_Q, weights_SI)})
    return rows


def recall_row(ranks_Q: np.ndarray, image_Q: np.ndarray, weights_SI: np.ndarray) -> dict[str, Any]:
    """Recalls of one ranking with the 95% interval of R@1; image_Q: the image of each query."""
    sums = ImageSums.of(np.stack([recall_at_k(ranks_Q, cut) for cut in RECALL_AT], axis=1), image_Q, weights_SI.shape[1])
    recalls = dict(zip(RECALLS, sums.means().tolist(), strict=True))
    return recalls | {"ci95": interval(sums.resampled_means(weights_SI))[:, 0].tolist()}


def r1_by_size(sweep: Sweep) -> dict[Direction, list[list[float]]]:
    """report.json's `r1_by_k`: R@1 at each K of the sweep; [[k, R@1], ...] of each direction, K ascending."""
    return {d: [[k, float((sweep[k][d] == 1).mean())] for k in sorted(sweep)] for d in DIRECTIONS}


def curves(
    rows: list[dict[str, Any]],
    by_size: Mapping[str, list[list[float]]] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    ceiling: Mapping[str, list[list[float]]] | None = None,
) -> dict[str, Any]:
    """R@1 over K as a drawing in a box of 400 x 160: each direction's points with the ends of their intervals and the line through every K
    that is known, K's places, y's range.

    K of the rows (`k_sweep`) are evenly spaced (they double), others between them by their logarithm; y covers all that is drawn. Without
    `by_size` (`r1_by_k`; an older report has none) the lines go through the rows.

    Args:
        bounds: range of y, for drawings that share it; None: of what is drawn.
        ceiling: [[k, share], ...] by direction, drawn as `ceilings`.
    """
    by_size = by_size or {d: [[row["k"], row["R@1"]] for row in rows if row["direction"] == d] for d in DIRECTIONS}
    sizes = sorted({row["k"] for row in rows})
    shares = [share for row in rows for share in row["ci95"]] + [share for line in by_size.values() for _, share in line]
    low, high = bounds or (min(shares), max(shares))
    place = {k: round(400 * number / max(1, len(sizes) - 1), 1) for number, k in enumerate(sizes)}

    def height(share: float) -> float:
        return round(160 * (high - share) / ((high - low) or 1.0), 1)

    lines = {
        direction: [
            {"x": place[row["k"]], "y": height(row["R@1"]), "ends": [height(end) for end in row["ci95"]]}
            for row in rows
            if row["direction"] == direction
        ]
        for direction in DIRECTIONS
    }

    def path(line: list[list[float]]) -> list[dict[str, float]]:
        return [{"x": round(float(np.interp(np.log(k), np.log(sizes), list(place.values()))), 1), "y": height(share)} for k, share in line]

    paths, ceilings = ({direction: path(line) for direction, line in one.items()} for one in (by_size, ceiling or {}))
    return {"lines": lines, "paths": paths, "ceilings": ceilings, "places": place, "low": low, "high": high}


def curves_over(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """The same drawing over another key of the rows than K, its values evenly spaced in the order of the rows."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(row[key] for row in rows), 1)}
    drawn = curves([row | {"k": numbers[row[key]]} for row in rows])
    return drawn | {"places": {value: drawn["places"][number] for value, number in numbers.items()}}

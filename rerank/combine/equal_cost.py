"""What the base alone would gain from the seconds an ensemble costs more, were they spent on reranking.

Everything comes from the report itself: the seconds of a pair from the reranked stage's cost, the pairs that the first K of every query
make from the base's lists, the ranks at that K from the stage's sweep (queries.parquet).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.differences import Differences
from eval.metrics.k_sweep import read_sweep
from eval.search.ranking import DIRECTIONS


def same_seconds(found: Differences, ensemble: str, base: str, reranked: str, seconds: float) -> dict[str, Any] | None:
    """report.json's `same_seconds`: the largest K of a reranked stage that the seconds pay for, and the ensemble against it.

    K = 1 re-orders nothing: then the seconds buy no reranking, and the ensemble is compared with the base itself. None where it scored
    no pair in this run, all being cached (what a pair takes is not known then), or has no sweep.

    Args:
        base: a first stage.
        reranked: its reranked variant.
        seconds: what the ensemble costs more than the base.
    """
    cost, sweep = found.figures.stages[reranked]["cost"], read_sweep(found.figures.queries, reranked)
    if not cost.get("pairs_scored") or not sweep:
        return None
    per_pair = cost["rerank_seconds"] / cost["pairs_scored"]
    sizes = sorted(sweep)
    pairs = dict(zip(sizes, num_pairs(found.figures.queries, found.dataset, base, sizes), strict=True))
    k = max((size for size in sizes if pairs[size] * per_pair <= seconds), default=sizes[0])
    recalls = {direction: float((sweep[k][direction] == 1).mean()) for direction in DIRECTIONS}
    return {
        "stage": reranked,
        "k": k,
        "top_k": sizes[-1],
        "pairs": pairs[k],
        "seconds": pairs[k] * per_pair,
        "R@1": recalls | {"both": float(np.mean(list(recalls.values())))},
    } | found.against_ranks(ensemble, sweep[k])


def num_pairs(queries: pa.Table, dataset: RetrievalSet, stage: str, sizes: Sequence[int]) -> list[int]:
    """Number of distinct (image, caption) pairs among the first K of every query of both directions, for each K; none for K = 1.

    Args:
        queries: the rows of queries.parquet, a stage's lists as deep as the largest K or deeper.
    """
    ids = {"image": pa.array(list(dataset.image_ids)), "caption": pa.array(list(dataset.caption_ids))}
    keys, places = [], []
    for direction in DIRECTIONS:
        rows = queries.filter(pc.and_(pc.equal(queries["stage"], stage), pc.equal(queries["direction"], direction)))
        items = "caption" if direction == "image_to_text" else "image"
        top_QK = pc.index_in(rows["top_ids"].combine_chunks().flatten(), ids[items]).to_numpy().astype(np.int64).reshape(len(rows), -1)
        query_QK, place_QK = np.indices(top_QK.shape)
        image_QK, caption_QK = (query_QK, top_QK) if items == "caption" else (top_QK, query_QK)
        keys.append((image_QK * dataset.num_captions + caption_QK).ravel())
        places.append(place_QK.ravel() + 1)
    key_N, place_N = np.concatenate(keys), np.concatenate(places)
    order = np.lexsort((place_N, key_N))
    _, first = np.unique(key_N[order], return_index=True)
    best = np.sort(place_N[order][first])  # of each pair the best place either side gives it
    return [int(np.searchsorted(best, size, side="right")) if size > 1 else 0 for size in sizes]

"""What the base alone would gain from the seconds an ensemble costs more, were they spent on reranking.

The seconds of a pair come from the reranked stage's cost, the pairs that the first K of every query make from the base's lists, the ranks
at that K from the stage's sweep (queries.parquet).
"""

from bisect import bisect_right
from typing import Any

import numpy as np

from eval.metrics.differences import Differences
from eval.metrics.k_sweep import read_sweep
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank.scoring.candidates import candidate_lists


def same_seconds(found: Differences, ensemble: str, base: Stage, reranked: str, seconds: float) -> dict[str, Any] | None:
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

    def num_pairs(k: int) -> int:
        return candidate_lists(base.rankings.values(), k).num_pairs if k > 1 else 0

    k = sizes[max(0, bisect_right(sizes, seconds, key=lambda size: num_pairs(size) * per_pair) - 1)]
    pairs = num_pairs(k)
    recalls = {direction: float((sweep[k][direction] == 1).mean()) for direction in DIRECTIONS}
    return {
        "stage": reranked,
        "k": k,
        "top_k": sizes[-1],
        "pairs": pairs,
        "seconds": pairs * per_pair,
        "R@1": recalls | {"both": float(np.mean(list(recalls.values())))},
    } | found.against_ranks(ensemble, sweep[k])

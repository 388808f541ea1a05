"""A finished evaluation as result files of MTEB (mteb's `TaskResult`), one for each stage and direction, as of its Any2AnyRetrieval tasks.

Format: mteb 2.26's class TaskResult; names of the scores: its make_score_dict. Every score follows from the exact ranks of all relevant
items, by trec_eval's definitions, which are mteb's. Shape letter: P relevant (query, item) pairs.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.atomic import Content, replace_files
from eval.dataset.retrieval_set import RetrievalSet
from eval.report.files import stage_name
from eval.search.ranking import DIRECTIONS, Ranking
from eval.search.stage import Stage

DEPTHS = (1, 3, 5, 10, 20, 100, 1000)
"""mteb's k values."""
MAIN_SCORE = "ndcg_at_10"
"""Of mteb's own retrieval tasks between images and texts."""
_TASK_ENDINGS = {"image_to_text": "I2TRetrieval", "text_to_image": "T2IRetrieval"}


def write_mteb(folder: str | os.PathLike[str], stages: Sequence[Stage], dataset: RetrievalSet, languages: Sequence[str]) -> list[Path]:
    """Write STAGE/TASKI2TRetrieval.json and STAGE/TASKT2IRetrieval.json; the task is called as the data. Returns the paths.

    Args:
        languages: of the captions, as mteb writes them: "eng-Latn".

    Raises:
        OSError: the folder cannot be written.
    """
    contents: dict[Path, Content] = {}
    for stage in stages:
        for direction in DIRECTIONS:
            record = task_result(stage, stage.rankings[direction], dataset, languages)
            path = Path(folder) / stage_name(stage.name) / f"{record['task_name']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            contents[path] = json.dumps(record, indent=2) + "\n"
    replace_files(contents)
    return list(contents)


def task_result(stage: Stage, ranking: Ranking, dataset: RetrievalSet, languages: Sequence[str]) -> dict[str, Any]:
    """One direction of a stage as mteb's `TaskResult`. Its `mteb_version` is null: mteb did not measure it.

    The revision is that of the hub's data set, or else the SHA-256 of the split.
    """
    record, scores = dataset.record(), retrieval_scores(ranking)
    return {
        "dataset_revision": record.get("revision", record["sha256"]),
        "task_name": f"{_task_name(dataset.source)}{_TASK_ENDINGS[ranking.direction]}",
        "mteb_version": None,
        "scores": {
            dataset.split or "all": [scores | {"main_score": scores[MAIN_SCORE], "hf_subset": "default", "languages": list(languages)}]
        },
        "evaluation_time": float(stage.cost.get("seconds", 0.0)),
        "kg_co2_emissions": None,
    }


def retrieval_scores(ranking: Ranking) -> dict[str, float]:
    """ndcg, map, recall, precision, mrr and hit rate at each of DEPTHS, means over queries; `accuracy` is mteb's name for recall at 1.

    With the ranks r_1 < ... < r_R of a query's relevant items and their number up to k, n = |{j: r_j <= k}|:
    ndcg = sum over r_j <= k of 1 / log2(r_j + 1) over that of a perfect ranking; map = (1 / R) sum over r_j <= k of j / r_j;
    recall = n / R; precision = n / k; mrr = 1 / r_1 if r_1 <= k, else 0; hit rate = 1 if r_1 <= k, else 0 (the R@k of our reports).
    """
    counts_Q, starts = np.diff(ranking.positive_offsets), ranking.positive_offsets[:-1]
    query_P = np.repeat(np.arange(ranking.num_queries), counts_Q)
    ranks_P = ranking.positive_ranks_P[np.lexsort((ranking.positive_ranks_P, query_P))]
    place_P, best_Q = np.arange(len(ranks_P)) - starts[query_P] + 1, ranks_P[starts]
    perfect_N = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, int(counts_Q.max()) + 2)))])  # of 0, 1, ... relevant items
    found: dict[str, float] = {}
    for k in DEPTHS:
        inside_P = ranks_P <= k
        num_Q = np.add.reduceat(inside_P.astype(np.float64), starts)
        gain_Q = np.add.reduceat(np.where(inside_P, 1 / np.log2(ranks_P + 1), 0.0), starts)
        values = {
            "ndcg": gain_Q / perfect_N[np.minimum(counts_Q, k)],
            "map": np.add.reduceat(np.where(inside_P, place_P / ranks_P, 0.0), starts) / counts_Q,
            "recall": num_Q / counts_Q,
            "precision": num_Q / k,
            "mrr": np.where(best_Q <= k, 1 / best_Q, 0.0),
            "hit_rate": (best_Q <= k).astype(np.float64),
        }
        found |= {f"{name}_at_{k}": float(each.mean()) for name, each in values.items()}
    return found | {"accuracy": found["recall_at_1"]}


def _task_name(source: str) -> str:
    """A data set's name as those of mteb's tasks are: letters and digits, the words one after the other.

    >>> _task_name("demo/data/scenes.parquet"), _task_name("me/my-birds@main")
    ('Scenes', 'MyBirds')
    """
    name = Path(source.partition("@")[0]).name.partition(".")[0]
    return "".join(word[:1].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", name)) or "Data"

"""The systems of a study compared, from the rows of their runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eval.metrics.comparison import compare
from eval.metrics.significance import resample_weights
from eval.metrics.stage_metrics import StageMetrics
from eval.search.ranking import DIRECTIONS
from train.study.runs import Result
from train.study.statistics import OverSeeds, verdicts

WHICH = (*DIRECTIONS, "both")
"""Directions of R@1: each, and the mean of the two."""
Results = Mapping[str, Sequence[Result]]
"""The runs of each system, in the order of the seeds."""


def compare_systems(results: Results, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row of each (system, the one it is compared with): R@1 of each direction and of both, in [0, 1].

    By direction `delta`, `ci95_seeds`, `ci95_images`, `p_value` (over seeds, not corrected) and `by_seed`; and a `verdict` on both
    directions, corrected for the number of pairs.
    """
    images: dict[str, int] = {}
    for name in next(iter(results.values()))[0].queries["image_id"].to_pylist():
        images.setdefault(name, len(images))
    weights_SI = resample_weights(len(images))
    rows, over_seeds, over_images = list[dict[str, Any]](), list[OverSeeds](), list[tuple[float, float]]()
    for system, against in pairs:
        row: dict[str, Any] = {"system": system, "against": against}
        pooled = _differences(results, system, against, images, weights_SI, slice(None))
        each = [_differences(results, system, against, images, weights_SI[:1], slice(n, n + 1)) for n in range(len(results[system]))]
        for which in WHICH:
            deltas = [one[which]["delta"] for one in each]
            seeds = OverSeeds.of(deltas)
            row[which] = {
                "delta": seeds.mean,
                "ci95_seeds": seeds.ci95,
                "ci95_images": pooled[which]["ci95"],
                "p_value": seeds.p_value,
                "by_seed": deltas,
            }
        rows.append(row)
        over_seeds.append(seeds)
        over_images.append((pooled["both"]["ci95"][0], pooled["both"]["ci95"][1]))
    for row, verdict in zip(rows, verdicts(over_seeds, over_images) if rows else [], strict=True):
        row["verdict"] = verdict
    return rows


def _differences(
    results: Results, system: str, against: str, images: Mapping[str, int], weights_SI: np.ndarray, seeds: slice
) -> dict[str, dict[str, Any]]:
    """R@1 of a system less another's, of some of the seeds together, by direction."""
    tables = {name: pa.concat_tables([result.queries for result in results[name][seeds]]) for name in (system, against)}
    measured = {(name, d): StageMetrics.of(table, results[name][0].stage, d, images) for name, table in tables.items() for d in DIRECTIONS}
    rows = compare(measured, [(system, against)], weights_SI)
    return {row["direction"]: row for row in rows if row["metric"] == "R@1"}


def figures(results: Results, flops: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row of each system: means over its runs, and what each run chose.

    Args:
        flops: floating-point operations of each run; without those of cross-encoders, which are not counted.
    """
    rows = []
    for system, runs in results.items():
        near_miss = [value for value in (run.near_miss() for run in runs) if value is not None]
        retention = [run.retention() for run in runs]
        recalls = {k: [run.recall_at(k) for run in runs] for k in (1, 5)}
        means = {(k, which): float(np.mean([one[which] for one in recalls[k]])) for k in recalls for which in WHICH}
        rows.append(
            {
                "system": system,
                **{f"mean_R@{k}" if which == "both" else f"R@{k}_{which}": value for (k, which), value in means.items()},
                "near_miss": float(np.mean(near_miss)) if near_miss else None,
                "retention": {name: float(np.mean([one[name] for one in retention])) for name in retention[0]},
                "by_seed": [one["both"] for one in recalls[1]],
                "num_steps": [run.num_steps for run in runs],
                "chosen_steps": [run.chosen_step for run in runs],
                "mined_per_image": float(np.mean([run.mined_per_image for run in runs])),
                "seconds": float(np.mean([run.seconds for run in runs])),
                "flops": float(np.mean(flops[system])) if system in flops else None,
            }
        )
    return rows

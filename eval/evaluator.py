"""From rankings to figures: one table with a row a query, then means, intervals and comparisons computed from that table and nothing else.

Shape letters: Q queries of one direction, I images, M metrics, S resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.dataset import RetrievalSet
from eval.metrics import RECALL_AT, average_precision_at_r, r_precision, recall_at_k, reciprocal_rank
from eval.ranking import DIRECTIONS, Direction, Ranking
from eval.significance import ImageSums, holm, interval, resample_weights, sign_flip_p_values, verdict

RECALLS = tuple(f"R@{k}" for k in RECALL_AT)
MEAN_METRICS = (*RECALLS, "MRR", "mAP@R", "mean_rank")
METRICS = (*RECALLS, "median_rank", "mean_rank", "MRR", "mAP@R")


@dataclass(frozen=True)
class Stage:
    """One arm of an evaluation: a name ("base", "tuned+blip"), its ranking in both directions, and what it cost."""

    name: str
    rankings: Mapping[Direction, Ranking]
    cost: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """Everything report.json says but where it lies, with the per-query table it was computed from."""

    data: dict[str, Any]
    stages: dict[str, Any]
    comparisons: list[dict[str, Any]]
    queries: pa.Table


def evaluate(dataset: RetrievalSet, stages: Sequence[Stage], pairs: Sequence[tuple[str, str]] | None = None) -> Figures:
    """Measure stages and compare pairs of them.

    Args:
        pairs: (stage, against) names; default: each stage against the one before.
    """
    table = query_table(dataset, stages)
    image_number = {name: number for number, name in enumerate(dataset.image_ids)}
    weights_SI = resample_weights(dataset.num_images)
    measured = {
        (stage.name, direction): _Arm.of(table, stage.name, direction, image_number) for stage in stages for direction in DIRECTIONS
    }
    figures: dict[str, Any] = {}
    for stage in stages:
        figures[stage.name] = {direction: measured[stage.name, direction].figures(weights_SI) for direction in DIRECTIONS} | {
            "cost": dict(stage.cost)
        }
    chosen = list(zip([s.name for s in stages[1:]], [s.name for s in stages], strict=False)) if pairs is None else list(pairs)
    comparisons = compare(measured, chosen, weights_SI)
    data = {
        "source": dataset.source,
        "split": dataset.split,
        "num_images": dataset.num_images,
        "num_captions": dataset.num_captions,
        "sha256": dataset.sha256(),
    }
    return Figures(data, figures, comparisons, table)


def query_table(dataset: RetrievalSet, stages: Sequence[Stage]) -> pa.Table:
    """The rows of queries.parquet: stage, direction, query_id, image_id, rank, num_positives, ap_at_r, r_precision, top_ids, top_scores.

    image_id is the query itself, or the image the querying caption belongs to: the unit that is drawn.
    """
    image_ids = list(dataset.image_ids)
    caption_ids = list(dataset.caption_ids)
    own_image_ids = [image_ids[image] for image in dataset.caption_image_C]
    parts = []
    for stage in stages:
        for direction, ranking in stage.rankings.items():
            queries, gallery = (image_ids, caption_ids) if direction == "image_to_text" else (caption_ids, image_ids)
            parts.append(_stage_rows(stage.name, ranking, queries, image_ids if direction == "image_to_text" else own_image_ids, gallery))
    return pa.concat_tables(parts)


def _stage_rows(name: str, ranking: Ranking, queries: list[str], images: list[str], gallery: list[str]) -> pa.Table:
    num, depth = ranking.num_queries, ranking.depth
    offsets = pa.array(np.arange(num + 1, dtype=np.int32) * depth)
    top_ids = pa.array(gallery).take(pa.array(ranking.top_indices_QK.ravel()))
    return pa.table(
        {
            "stage": pa.repeat(name, num),
            "direction": pa.repeat(ranking.direction, num),
            "query_id": queries,
            "image_id": images,
            "rank": ranking.best_ranks(),
            "num_positives": np.diff(ranking.positive_offsets),
            "ap_at_r": average_precision_at_r(ranking.positive_offsets, ranking.positive_ranks_P),
            "r_precision": r_precision(ranking.positive_offsets, ranking.positive_ranks_P),
            "top_ids": pa.ListArray.from_arrays(offsets, top_ids),
            "top_scores": pa.ListArray.from_arrays(offsets, pa.array(ranking.top_scores_QK.astype(np.float32).ravel())),
        }
    )


@dataclass(frozen=True)
class _Arm:
    """The per-query numbers of one stage in one direction, read back from the table."""

    ranks_Q: np.ndarray
    image_Q: np.ndarray
    sums: ImageSums

    @classmethod
    def of(cls, table: pa.Table, stage: str, direction: Direction, image_number: Mapping[str, int]) -> "_Arm":
        rows = table.select(["stage", "direction", "image_id", "rank", "ap_at_r"]).filter(
            pc.and_(pc.equal(table["stage"], stage), pc.equal(table["direction"], direction))
        )
        ranks_Q = rows["rank"].to_numpy()
        image_Q = np.array([image_number[name] for name in rows["image_id"].to_pylist()], dtype=np.int64)
        columns: list[np.ndarray] = [recall_at_k(ranks_Q, k) for k in RECALL_AT]
        columns += [reciprocal_rank(ranks_Q), rows["ap_at_r"].to_numpy(), ranks_Q.astype(np.float64)]
        return cls(ranks_Q, image_Q, ImageSums.of(np.stack(columns, axis=1), image_Q, len(image_number)))

    def figures(self, weights_SI: np.ndarray) -> dict[str, Any]:
        """Each metric and its 95% interval."""
        means = dict(zip(MEAN_METRICS, self.sums.means().tolist(), strict=True))
        bounds = interval(self.sums.resampled_means(weights_SI))
        ci95 = {metric: bounds[:, column].tolist() for column, metric in enumerate(MEAN_METRICS)}
        means["median_rank"] = float(np.median(self.ranks_Q))
        ci95["median_rank"] = interval(self._resampled_medians(weights_SI)[:, None])[:, 0].tolist()
        return {metric: means[metric] for metric in METRICS} | {"ci95": {metric: ci95[metric] for metric in METRICS}}

    def _resampled_medians(self, weights_SI: np.ndarray) -> np.ndarray:
        """Median rank in each resample: the middle of the ranks when each query counts as often as its image was drawn."""
        order = np.argsort(self.ranks_Q, kind="stable")
        ranks, image = self.ranks_Q[order].astype(np.float64), self.image_Q[order]
        medians = np.empty(len(weights_SI))
        for row, weights_I in enumerate(weights_SI):
            cumulative = np.cumsum(weights_I[image])
            total = cumulative[-1]
            low = np.searchsorted(cumulative, (total + 1) // 2)
            high = np.searchsorted(cumulative, total // 2 + 1)
            medians[row] = (ranks[low] + ranks[high]) / 2
        return medians


def compare(
    measured: Mapping[tuple[str, Direction], Any], pairs: Sequence[tuple[str, str]], weights_SI: np.ndarray
) -> list[dict[str, Any]]:
    """Recalls of each pair of stages, per direction and for both together; paired intervals, one Holm correction over all rows."""
    rows: list[dict[str, Any]] = []
    p_values: list[float] = []
    for stage, against in pairs:
        sides = [(measured[stage, direction], measured[against, direction]) for direction in DIRECTIONS]
        for name, chosen in (*zip(DIRECTIONS, ([side] for side in sides), strict=True), ("both", sides)):
            for row, p in _compare_pair(chosen, weights_SI):
                rows.append({"stage": stage, "against": against, "direction": name, **row})
                p_values.append(p)
    for row, p in zip(rows, holm(np.array(p_values)) if p_values else [], strict=True):
        row["p_value"] = float(p)
        row["verdict"] = verdict(row["delta"], float(p))
    return rows


def _compare_pair(sides: Sequence[tuple[_Arm, _Arm]], weights_SI: np.ndarray) -> list[tuple[dict[str, Any], float]]:
    """(row, uncorrected p) of each recall: difference of the mean over the given directions, images drawn jointly."""
    num = len(RECALLS)
    delta_M = np.mean([one.sums.means()[:num] - other.sums.means()[:num] for one, other in sides], axis=0)
    resampled_SM = np.mean(
        [(one.sums.resampled_means(weights_SI) - other.sums.resampled_means(weights_SI))[:, :num] for one, other in sides], axis=0
    )
    share_IM = np.mean([(one.sums.sums_IM - other.sums.sums_IM)[:, :num] / one.sums.counts_I.sum() for one, other in sides], axis=0)
    p_M = sign_flip_p_values(share_IM)
    bounds_2M = interval(resampled_SM)
    rows = []
    for column, k in enumerate(RECALL_AT):
        gains = [recall_at_k(one.ranks_Q, k) - recall_at_k(other.ranks_Q, k) for one, other in sides]
        row = {
            "metric": RECALLS[column],
            "delta": float(delta_M[column]),
            "ci95": bounds_2M[:, column].tolist(),
            "p_value": 0.0,
            "wins": int(sum((gain > 0).sum() for gain in gains)),
            "losses": int(sum((gain < 0).sum() for gain in gains)),
        }
        rows.append((row, float(p_M[column])))
    return rows

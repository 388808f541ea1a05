"""One stage of an evaluation in one direction: per-query numbers from the table, and the figures and intervals made of them.

Shape letters: Q queries of one direction, I images, M metrics, S resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.metrics.metrics import RECALL_AT, recall_at_k, reciprocal_rank
from eval.metrics.significance import ImageSums, interval
from eval.search.ranking import DIRECTIONS, Direction

RECALLS = tuple(f"R@{k}" for k in RECALL_AT)
MEAN_METRICS = (*RECALLS, "MRR", "mAP@R", "R-Precision", "mean_rank")
METRICS = (*RECALLS, "median_rank", "mean_rank", "MRR", "mAP@R", "R-Precision")


def mean_recall_at_1(values: Mapping[Direction, Mapping[str, Any]]) -> float:
    """Mean R@1 of both directions, by which checkpoints are chosen."""
    return float(sum(values[direction]["R@1"] for direction in DIRECTIONS) / len(DIRECTIONS))


@dataclass(frozen=True)
class StageMetrics:
    """The per-query numbers of one stage in one direction, read back from the table.

    Attributes:
        ranks_Q: int64, rank of the best positive of each query.
        image_Q: int64, number of the image each query belongs to.
        sums: per image, the sums of MEAN_METRICS.
    """

    ranks_Q: np.ndarray
    image_Q: np.ndarray
    sums: ImageSums

    @classmethod
    def of(cls, table: pa.Table, stage: str, direction: Direction, image_number: Mapping[str, int]) -> "StageMetrics":
        """Read one stage from the rows of queries.parquet; `image_number` numbers the images of the bootstrap."""
        rows = table.select(["stage", "direction", "image_id", "rank", "ap_at_r", "r_precision"]).filter(
            pc.and_(pc.equal(table["stage"], stage), pc.equal(table["direction"], direction))
        )
        ranks_Q = rows["rank"].to_numpy()
        image_Q = np.array([image_number[name] for name in rows["image_id"].to_pylist()], dtype=np.int64)
        return cls.of_queries(ranks_Q, (rows["ap_at_r"].to_numpy(), rows["r_precision"].to_numpy()), image_Q, len(image_number))

    @classmethod
    def of_queries(
        cls, ranks_Q: np.ndarray, precisions: tuple[np.ndarray, np.ndarray], image_Q: np.ndarray, num_images: int
    ) -> "StageMetrics":
        """Those of per-query numbers; precisions: average precision at R, and R-precision."""
        columns: list[np.ndarray] = [recall_at_k(ranks_Q, k) for k in RECALL_AT]
        columns += [reciprocal_rank(ranks_Q), *precisions, ranks_Q.astype(np.float64)]
        return cls(ranks_Q, image_Q, ImageSums.of(np.stack(columns, axis=1), image_Q, num_images))

    def values(self) -> dict[str, float]:
        """Each metric."""
        found = dict(zip(MEAN_METRICS, self.sums.means().tolist(), strict=True)) | {"median_rank": float(np.median(self.ranks_Q))}
        return {metric: found[metric] for metric in METRICS}

    def figures(self, weights_SI: np.ndarray) -> dict[str, Any]:
        """Each metric and its 95% interval."""
        bounds = interval(self.sums.resampled_means(weights_SI))
        ci95 = {metric: bounds[:, column].tolist() for column, metric in enumerate(MEAN_METRICS)}
        ci95["median_rank"] = interval(self._resampled_medians(weights_SI)[:, None])[:, 0].tolist()
        return self.values() | {"ci95": {metric: ci95[metric] for metric in METRICS}}

    def _resampled_medians(self, weights_SI: np.ndarray) -> np.ndarray:
        """Median rank in each resample: the middle of the ranks when each query counts as often as its image was drawn."""
        order = np.argsort(self.ranks_Q, kind="stable")
        ranks, image = self.ranks_Q[order].astype(np.float64), self.image_Q[order]
        medians = np.empty(len(weights_SI))
        for row, weights_I in enumerate(weights_SI):
            cumulative = np.cumsum(weights_I[image])
            total = cumulative[-1]
            if total == 0:  # no image with a query was drawn
                medians[row] = np.nan
                continue
            low = np.searchsorted(cumulative, (total + 1) // 2)
            high = np.searchsorted(cumulative, total // 2 + 1)
            medians[row] = (ranks[low] + ranks[high]) / 2
        return medians

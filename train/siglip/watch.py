"""Retention sets: what the model knew before step 1, measured again next to val, and whether it was forgotten.

A set has dropped if the paired 95% interval (bootstrap over images) of mean R@1 of both directions against the base lies wholly below 0.
The figures are eval/'s own, from the same per-query rows. What the base retrieved is not stored: a resumed run measures it again, which
gives the same bits, since adapters begin at zero and scale and bias move no rank. Shape letters: S resamples, I images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from transformers import SiglipModel

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.encoder.inputs import SiglipInputs
from eval.execution import Execution
from eval.metrics.comparison import compare
from eval.metrics.evaluate import Figures
from eval.metrics.measurement import measure_checkpoint
from eval.metrics.significance import interval, resample_weights
from eval.metrics.stage_metrics import StageMetrics, mean_recall_at_1
from eval.processes import Processes
from eval.report.render import signed
from eval.report.section import SectionFormat
from eval.search.ranking import DIRECTIONS
from train.config.evaluation import BASELINE, SUBJECT, WatchConfig

if TYPE_CHECKING:
    from eval.dataset.pixel_cache import PixelStore
    from train.data.splits import RetentionSet


@dataclass(frozen=True)
class Recall:
    """Mean R@1 of both directions of a set, and how far it is from a reference's.

    Attributes:
        mean, ci95: the value and its interval.
        delta, delta_ci95: the paired difference, as eval/metrics/comparison.py computes it.
    """

    mean: float
    ci95: list[float]
    delta: float
    delta_ci95: list[float]

    @classmethod
    def of(cls, dataset: RetrievalSet, table: pa.Table, stage: str, against: str) -> Recall:
        """Compare two stages of a table of query_table's."""
        numbers = {name: number for number, name in enumerate(dataset.image_ids)}
        measured = {
            (name, direction): StageMetrics.of(table, name, direction, numbers) for name in (stage, against) for direction in DIRECTIONS
        }
        weights_SI = resample_weights(dataset.num_images)
        own = [measured[stage, direction].sums for direction in DIRECTIONS]
        resampled_S1 = np.mean([sums.resampled_means(weights_SI)[:, :1] for sums in own], axis=0)
        row = r1_of_both(compare(measured, [(stage, against)], weights_SI))
        mean = mean_recall_at_1({direction: measured[stage, direction].values() for direction in DIRECTIONS})
        return cls(mean, interval(resampled_S1)[:, 0].tolist(), float(row["delta"]), list(row["ci95"]))

    def as_record(self) -> dict[str, Any]:
        """Its figures, for JSON."""
        return {"mean_R@1": self.mean, "ci95": self.ci95, "delta": self.delta, "delta_ci95": self.delta_ci95, "dropped": self.dropped}

    @property
    def dropped(self) -> bool:
        """True if the difference's interval lies wholly below 0."""
        return self.delta_ci95[1] < 0


def r1_of_both(comparisons: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row of a comparison of two stages that decides: R@1, both directions."""
    return next(row for row in comparisons if row["direction"] == "both" and row["metric"] == "R@1")


@dataclass(frozen=True)
class RetentionResult:
    """What an evaluation found on one retention set."""

    config: WatchConfig
    recall: Recall

    @property
    def bars(self) -> bool:
        """True if the checkpoint cannot become the best."""
        return self.recall.dropped and self.config.on_drop in ("bar", "stop")

    @property
    def stops(self) -> bool:
        """True if the run ends here."""
        return self.recall.dropped and self.config.on_drop == "stop"

    def as_record(self) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        recall = self.recall
        figures = {"mean_R@1": recall.mean, "delta": recall.delta, "ci95": recall.delta_ci95, "dropped": recall.dropped}
        return {"name": self.config.name} | figures | {"on_drop": self.config.on_drop}

    def __str__(self) -> str:
        recall = self.recall
        low, high = (100 * bound for bound in recall.delta_ci95)
        text = f"watch {self.config.name}: mean R@1 {100 * recall.mean:.2f}, {100 * recall.delta:+.2f} since base [{low:+.2f}, {high:+.2f}]"
        if not recall.dropped:
            return text
        return text + ": forgotten" + {"report": "", "bar": "; not to be best", "stop": "; the run ends here"}[self.config.on_drop]


class Watch:
    """The retention sets of a run."""

    def __init__(
        self,
        sets: Sequence[RetentionSet],
        base: str,
        processes: Processes,
        num_workers: int,
        *,
        starts_at_base: bool = True,
        pixels: PixelStore | None = None,
    ) -> None:
        """starts_at_base: whether the weights of step 0 are the base's; pixels: caches of resized pictures."""
        self._starts_at_base, self._pixels = starts_at_base, pixels
        self._sets, self._base, self._processes, self._num_workers = sets, base, processes, num_workers
        self._references: list[pa.Table] = []

    @property
    def num_rows(self) -> int:
        """Images and captions of all sets."""
        return sum(watched.dataset.num_images + watched.dataset.num_captions for watched in self._sets)

    def evaluate(self, step: int, siglip: SiglipModel, inputs: SiglipInputs, on_progress: Callable[[int], Any]) -> list[RetentionResult]:
        """Measure every set and compare it with the base; call on every process.

        Raises:
            UserError: a picture does not decode, or the base is not there any more.
        """
        tables = self._tables("now", siglip, inputs, on_progress)
        if step == 0 and self._starts_at_base:
            self._references = [table.set_column(0, "stage", pa.array(["before"] * len(table))) for table in tables]
        elif len(self._references) < len(self._sets):
            base, _ = load_siglip(self._base)
            base.to(next(siglip.parameters()).device)
            self._references = self._tables("before", base, inputs, on_progress)
        return [
            RetentionResult(watched.config, Recall.of(watched.dataset, pa.concat_tables([reference, table]), "now", "before"))
            for watched, reference, table in zip(self._sets, self._references, tables, strict=True)
        ]

    def _tables(self, name: str, siglip: SiglipModel, inputs: SiglipInputs, on_progress: Callable[[int], Any]) -> list[pa.Table]:
        execution = Execution(processes=self._processes, num_workers=self._num_workers, on_progress=on_progress, pixels=self._pixels)
        return [measure_checkpoint(name, siglip, inputs, watched.dataset, execution=execution) for watched in self._sets]


def retention_record(config: WatchConfig, figures: Figures) -> dict[str, Any]:
    """The record of one retention set in the final report, from the figures of "base" and "tuned"."""
    return {
        "name": config.name,
        "on_drop": config.on_drop,
        "data": figures.data,
        "stages": figures.stages,
        "comparisons": figures.comparisons,
        "dropped": r1_of_both(figures.comparisons)["ci95"][1] < 0,
    }


def retention_line(name: str, record: Mapping[str, Any]) -> str:
    """The report of a retention set, or its record in the final report, in a line."""
    row = r1_of_both(record["comparisons"])
    base, tuned = (mean_recall_at_1(record["stages"][stage]) for stage in (BASELINE, SUBJECT))
    low, high = row["ci95"]
    text = f"watch {name}: mean R@1 {100 * base:.2f} -> {100 * tuned:.2f}, {100 * row['delta']:+.2f}"
    return text + f" [{100 * low:+.2f}, {100 * high:+.2f}]" + (": forgotten" if high < 0 else ": no drop")


def _forgotten(record: Mapping[str, Any]) -> str:
    """A sentence on a retention set that was forgotten."""
    base, tuned = (100 * mean_recall_at_1(record["stages"][stage]) for stage in (BASELINE, SUBJECT))
    row = r1_of_both(record["comparisons"])
    low, high = row["ci95"]
    difference = f"{signed(row['delta'])}, 95% interval {signed(low)} to {signed(high)}"
    return f"Forgotten: on the retention set {record['name']} mean R@1 fell from {base:.1f} to {tuned:.1f} ({difference})."


RETENTION = SectionFormat(
    key="watch",
    title="Retention sets",
    template=Path(__file__).parent / "templates" / "retention_sets.html.j2",
    notes=lambda record: [f"{retention_line(one['name'], one)}." for one in record if not one["dropped"]],
    warnings=lambda record: [_forgotten(one) for one in record if one["dropped"]],
)
"""The records of all retention sets in the final report."""

"""From a table of outcomes to figures: means, intervals by bootstrap over images, and comparisons corrected within each pair of stages.

Shape letters: E examples, U units, M metrics, S resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.choices.choice_set import ChoiceKind
from eval.choices.outcomes import METRICS
from eval.errors import UserError
from eval.metrics.significance import ImageSums, correct, interval, resample_weights, sign_flip_p_values


@dataclass(frozen=True)
class Sample:
    """The examples of one kind, all or those of one category.

    Attributes:
        rows_E: their places among the rows of a stage.
        unit_E: number of each one's unit.
        weights_SU: how often each unit is in each resample, the same for every stage.
    """

    kind: ChoiceKind
    rows_E: np.ndarray
    unit_E: np.ndarray
    weights_SU: np.ndarray

    @classmethod
    def of(cls, rows: pa.Table, kind: ChoiceKind, category: str | None = None) -> "Sample":
        """The examples among the rows of a stage; of every category where none is named."""
        chosen = pc.equal(rows["kind"], kind)
        if category is not None:
            chosen = pc.and_kleene(chosen, pc.equal(rows["category"], category))
        rows_E = np.flatnonzero(pc.fill_null(chosen, False).to_numpy())
        units, unit_E = np.unique(np.array(rows["unit"].to_pylist(), dtype=object)[rows_E].astype(str), return_inverse=True)
        return cls(kind, rows_E, unit_E, resample_weights(len(units)) if len(units) else np.empty((0, 0)))

    def values(self, rows: pa.Table, suffix: str = "") -> np.ndarray:
        """float64 of shape (E, M): the kind's metrics of a stage's rows."""
        return np.stack([rows[f"{m}{suffix}"].take(self.rows_E).cast(pa.float64()).to_numpy() for m in METRICS[self.kind]], axis=1)

    def sums(self, rows: pa.Table) -> ImageSums:
        """The metrics of a stage's rows added up by unit."""
        return ImageSums.of(self.values(rows), self.unit_E, self.weights_SU.shape[1])

    def figures(self, rows: pa.Table) -> dict[str, Any]:
        """Value, 95% interval, chance and number of examples of each metric."""
        if not len(self.rows_E):
            return {}
        sums, chance_M = self.sums(rows), self.values(rows, "_chance").mean(axis=0)
        value_M, bounds_2M = sums.means(), interval(sums.resampled_means(self.weights_SU))
        return {
            metric: {
                "value": float(value_M[column]),
                "ci95": bounds_2M[:, column].tolist(),
                "chance": float(chance_M[column]),
                "num_examples": len(self.rows_E),
            }
            for column, metric in enumerate(METRICS[self.kind])
        }

    def compare(self, one: pa.Table, other: pa.Table) -> list[dict[str, Any]]:
        """Each metric's difference of two stages, its paired interval and the p-value before any correction."""
        if not len(self.rows_E):
            return []
        sums, against = self.sums(one), self.sums(other)
        gains_EM = self.values(one) - self.values(other)
        bounds_2M = interval(sums.resampled_means(self.weights_SU) - against.resampled_means(self.weights_SU))
        p_M = sign_flip_p_values(sums.sums_IM - against.sums_IM)
        return [
            {
                "metric": metric,
                "delta": float(gains_EM[:, column].mean()),
                "ci95": bounds_2M[:, column].tolist(),
                "p_value": float(p_M[column]),
                "wins": int((gains_EM[:, column] > 0).sum()),
                "losses": int((gains_EM[:, column] < 0).sum()),
            }
            for column, metric in enumerate(METRICS[self.kind])
        ]


def choice_figures(table: pa.Table, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """`stages` and `comparisons` of a record, from the rows of choices.parquet and nothing else; p corrected (Holm) within each pair.

    Raises:
        UserError: a pair names a stage that is not in the table.
    """
    by_stage = {stage: table.filter(pc.equal(table["stage"], stage)) for stage in pc.unique(table["stage"]).to_pylist()}
    if unknown := sorted({name for pair in pairs for name in pair} - set(by_stage)):
        raise UserError(f"comparisons name the stage(s) {unknown}; measured: {list(by_stage)}")
    first = next(iter(by_stage.values()))
    categories = sorted(name for name in pc.unique(first["category"]).to_pylist() if name is not None)
    overall = [Sample.of(first, kind) for kind in METRICS]
    by_category = {category: [Sample.of(first, kind, category) for kind in METRICS] for category in categories}
    stages = {
        stage: {
            "overall": _merged(overall, rows),
            "categories": {category: _merged(samples, rows) for category, samples in by_category.items()},
        }
        for stage, rows in by_stage.items()
    }
    comparisons = [
        {"stage": stage, "against": against, **row}
        for stage, against in pairs
        for sample in overall
        for row in sample.compare(by_stage[stage], by_stage[against])
    ]
    correct(comparisons)
    return {"stages": stages, "comparisons": comparisons}


def _merged(samples: Sequence[Sample], rows: pa.Table) -> dict[str, Any]:
    """The figures of both kinds in one."""
    return {metric: figure for sample in samples for metric, figure in sample.figures(rows).items()}

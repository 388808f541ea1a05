"""The stages of a soup: every ingredient alone and the soups of some of them, one model in memory at a time, each measured on one split."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from eval.dataset.caption_rule import as_read_by
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import hash_weights
from eval.encoder.weights import not_finite
from eval.errors import UserError
from eval.metrics.evaluate import row_values
from eval.metrics.stage_metrics import mean_recall_at_1
from train.model.siglip import TunedModel
from train.siglip.model_rows import measure_model
from train.siglip.watch import Recall
from train.soup.average import RunningMean
from train.soup.ingredients import Ingredient

SOUP = "soup"
"""What the uniform soup is called in the per-query rows."""


@dataclass
class SoupStages:
    """The ingredients, one of them in memory at a time, and what was measured of them and of their soups.

    Attributes:
        dataset: the split they are measured on; None: nothing is.
        tables: per-query rows without the retrieved ids, by the name of a stage.
        sha256: of the weights of each ingredient that was loaded, by index.
    """

    ingredients: Sequence[Ingredient]
    dataset: RetrievalSet | None
    num_workers: int
    tables: dict[str, pa.Table] = field(default_factory=dict)
    sha256: dict[int, str] = field(default_factory=dict)
    _mean: RunningMean = field(default_factory=RunningMean)
    _in_mean: tuple[int, ...] = ()

    def load(self, index: int) -> TunedModel:
        """An ingredient's model, on the CPU.

        Raises:
            UserError: it cannot be read, is not finite, or has the very weights of another.
        """
        tuned = self.ingredients[index].load()
        if broken := not_finite(tuned.siglip.state_dict().items()):
            raise UserError(f"{self.ingredients[index].name}: weights that are not finite, e.g. {broken[0]}; they would spoil every soup")
        self.sha256[index] = tuned.base_sha256
        for other, sha256 in self.sha256.items():
            if other != index and sha256 == tuned.base_sha256:
                names = f"{self.ingredients[other].name} and {self.ingredients[index].name}"
                raise UserError(f"{names} have the very same weights: they would count double. Leave one out")
        return tuned

    def soup_of(self, members: tuple[int, ...]) -> TunedModel:
        """The soup of some ingredients, in their order; the sum of all but the last stays for the next."""
        *others, last = members
        if self._in_mean != tuple(others[: len(self._in_mean)]):
            self._mean, self._in_mean = RunningMean(), ()
        for index in others[len(self._in_mean) :]:
            self._mean.add(self.load(index).siglip.state_dict())
        self._in_mean = tuple(others)
        tuned = self.load(last)
        tuned.siglip.load_state_dict(self._mean.mean_with(tuned.siglip.state_dict()))
        return TunedModel(tuned.siglip, tuned.inputs, hash_weights(tuned.siglip))

    def measure(self, stage: str, tuned: TunedModel) -> float:
        """Mean R@1 of both directions; the rows of the stage stay in `tables`."""
        assert self.dataset is not None
        (dataset,) = as_read_by([tuned.inputs], [self.dataset])
        self.tables[stage] = measure_model(stage, tuned, dataset, self.num_workers)
        return mean_recall_at_1(row_values(dataset, self.tables[stage], stage))

    def recall(self, stage: str, against: str) -> dict[str, Any]:
        """What was measured of a stage, with intervals, and the paired difference from another."""
        assert self.dataset is not None
        tables = [self.tables[name] for name in dict.fromkeys((stage, against))]
        record = Recall.of(self.dataset, pa.concat_tables(tables), stage, against).as_record()
        return {key: record[key] for key in ("mean_R@1", "ci95", "delta", "delta_ci95")}


def stage_name(index: int) -> str:
    """What an ingredient is called in the per-query rows."""
    return f"ingredient-{index + 1}"


def trial_name(index: int) -> str:
    """What the soup with an ingredient on trial is called there."""
    return f"with-{stage_name(index)}"

"""A soup: the mean of the weights of several checkpoints of one architecture, exported as one model with the cost of one.

    python -m train.soup CHECKPOINT CHECKPOINT... --output DIR [--greedy] [--data MANIFEST --split val]

A CHECKPOINT is a folder, a hub id, RUN_FOLDER (its best checkpoint) or RUN_FOLDER@STEP. Writes DIR/soup.json, DIR/export and, where it
measures, DIR/queries.parquet (a row a query of every ingredient and every trial). Source: Wortsman et al. 2022, arXiv 2203.05482: the uniform
soup, and the greedy one (algorithm 1); over every weight, scale and bias included.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from eval.checkpoint import hash_weights
from eval.dataset import RetrievalSet, load_split
from eval.errors import UserError
from eval.evaluator import check_stages, query_table, values_of
from eval.first_stage import progress_bar, retrieve, use_exact_float32
from eval.manifest import COLUMNS, read_manifest
from eval.processes import Processes
from eval.ranking import DIRECTIONS
from eval.replacing import replace_together
from train.config import DataConfig
from train.export import check_replaceable, export_model
from train.ingredients import Ingredient, read_ingredients
from train.model import TunedModel
from train.soup_card import soup_card
from train.watch import Recall

State = Mapping[str, torch.Tensor]


class RunningMean:
    """The mean of the weights of models that pass by one at a time: one sum is held, float64.

    Attributes:
        count: models added.
    """

    def __init__(self) -> None:
        self._sum: dict[str, torch.Tensor] = {}
        self.count = 0

    def add(self, state: State) -> None:
        """Count a model in.

        Raises:
            ValueError: its weights have other names or shapes than those before.
        """
        self._sum, self.count = self._with(state), self.count + 1

    def mean(self) -> dict[str, torch.Tensor]:
        """Of those added, float32."""
        return {name: (total / self.count).float() for name, total in self._sum.items()}

    def mean_with(self, state: State) -> dict[str, torch.Tensor]:
        """What the mean would be with one more, float32; nothing is added."""
        return {name: (total / (self.count + 1)).float() for name, total in self._with(state).items()}

    def _with(self, state: State) -> dict[str, torch.Tensor]:
        if not self.count:
            return {name: value.detach().double() for name, value in state.items()}
        shapes, others = ({name: tuple(value.shape) for name, value in part.items()} for part in (self._sum, state))
        if shapes != others:
            differing = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
            raise ValueError(f"two different models; differing weights: {differing[:5]}")
        return {name: total + state[name].detach().double() for name, total in self._sum.items()}


@dataclass(frozen=True)
class Trial:
    """One question of the greedy soup.

    Attributes:
        ingredient: index of the one that was tried.
        members: of the soup before, in the order in which they came.
        before, score: of the soup without it and with it.
    """

    ingredient: int
    members: tuple[int, ...]
    before: float
    score: float

    @property
    def kept(self) -> bool:
        """Whether it stays: it does not lower the score."""
        return self.score >= self.before


def greedy(alone: Sequence[float], score: Callable[[tuple[int, ...]], float]) -> tuple[tuple[int, ...], list[Trial]]:
    """(members of the greedy soup, every trial): the best alone first, then each of the others, best first, kept if it does not lower it.

    Args:
        alone: score of each ingredient; equal ones are tried in the order given.
        score: of the soup of some ingredients, the last of them on trial.
    """
    first, *others = sorted(range(len(alone)), key=lambda index: -alone[index])
    members, best, trials = (first,), alone[first], list[Trial]()
    for index in others:
        trial = Trial(index, members, best, score((*members, index)))
        trials.append(trial)
        if trial.kept:
            members, best = (*members, index), trial.score
    return members, trials


@dataclass
class Kitchen:
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
            UserError: it cannot be read, or has the very weights of another.
        """
        tuned = self.ingredients[index].load()
        self.sha256[index] = tuned.base_sha256
        for other, sha256 in self.sha256.items():
            if other != index and sha256 == tuned.base_sha256:
                names = f"{self.ingredients[other].name} and {self.ingredients[index].name}"
                raise UserError(f"{names} have the very same weights: they would count double. Leave one out")
        return tuned

    def taste(self, index: int) -> float:
        """Measure an ingredient alone."""
        return self.measure(stage_name(index), self.load(index))

    def score(self, members: tuple[int, ...]) -> float:
        """Measure a soup of some ingredients, the last of them on trial."""
        return self.measure(trial_name(members[-1]), self.cook(members))

    def cook(self, members: tuple[int, ...]) -> TunedModel:
        """The soup of some ingredients, in their order; the sum of all but the last is kept for the next."""
        *others, last = members
        if self._in_mean != members[: len(self._in_mean)]:
            self._mean, self._in_mean = RunningMean(), ()
        for index in others[len(self._in_mean) :]:
            self._mean.add(self.load(index).siglip.state_dict())
        self._in_mean = tuple(others)
        tuned = self.load(last)
        tuned.siglip.load_state_dict(self._mean.mean_with(tuned.siglip.state_dict()))
        return TunedModel(tuned.siglip, tuned.inputs, hash_weights(tuned.siglip))

    def measure(self, stage: str, tuned: TunedModel) -> float:
        """Mean R@1 of both directions; the rows of the stage are kept."""
        assert self.dataset is not None
        tuned.siglip.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]  # transformers wraps it
        with progress_bar(stage, self.dataset, Processes()) as bar:
            found = retrieve(stage, tuned.siglip, tuned.inputs, self.dataset, num_workers=self.num_workers, on_progress=bar.update)
        check_stages(self.dataset, [found], ())
        self.tables[stage] = query_table(self.dataset, [found]).drop_columns(["top_ids", "top_scores"])
        values = values_of(self.dataset, found)
        return sum(values[direction]["R@1"] for direction in DIRECTIONS) / len(DIRECTIONS)

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
    """What the soup with an ingredient on trial is called there; of the uniform soup, the soup itself."""
    return f"with-{stage_name(index)}"


def run(names: Sequence[str], output: Path, *, is_greedy: bool, data: DataConfig | None, num_workers: int = 2) -> dict[str, Any]:
    """Measure, choose, average, export; what soup.json holds.

    Args:
        data: the split `val_split` of this; None: that of the ingredients' runs for a greedy soup, and no measuring for a uniform one.

    Raises:
        UserError: ingredients, data or output cannot be used.
        OSError: something cannot be written.
    """
    use_exact_float32()
    ingredients = read_ingredients(names)
    check_output(output, ingredients)
    data = common_data(ingredients) if data is None and is_greedy else data
    output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    kitchen = Kitchen(ingredients, None if data is None else read_split(data), num_workers)
    alone = [kitchen.taste(index) for index in range(len(ingredients))] if kitchen.dataset is not None else []
    members, trials, stage = tuple(range(len(ingredients))), list[Trial](), trial_name(len(ingredients) - 1)
    if is_greedy:
        members, trials = greedy(alone, kitchen.score)
        stage = trial_name(members[-1]) if len(members) > 1 else stage_name(members[0])
    soup = kitchen.cook(members)
    if alone and stage not in kitchen.tables:
        kitchen.measure(stage, soup)
    record = make_record(kitchen, alone, members, trials, is_greedy=is_greedy, stage=stage, sha256=soup.base_sha256)
    _write(output, record, kitchen.tables)
    export_model(soup, output / "export", soup_card(record))
    return record


def make_record(
    kitchen: Kitchen,
    alone: Sequence[float],
    members: tuple[int, ...],
    trials: Sequence[Trial],
    *,
    is_greedy: bool,
    stage: str,
    sha256: str,
) -> dict[str, Any]:
    """What soup.json holds; what is not measured is left out.

    Args:
        alone: score of each ingredient; empty: none was measured.
        stage: the soup's in the per-query rows.
        sha256: of the soup's weights.
    """
    names, dataset = [ingredient.name for ingredient in kitchen.ingredients], kitchen.dataset
    rows: list[dict[str, Any]] = [
        {"name": name, "weights_sha256": kitchen.sha256[index], "kept": index in members} for index, name in enumerate(names)
    ]
    soup: dict[str, Any] = {"members": [names[index] for index in members], "weights_sha256": sha256}
    record: dict[str, Any] = {"kind": "greedy" if is_greedy else "uniform", "ingredients": rows, "soup": soup}
    if dataset is not None:
        best = max(range(len(alone)), key=lambda index: alone[index])
        for index, row in enumerate(rows):
            row |= {"stage": stage_name(index)} | kitchen.recall(stage_name(index), stage_name(best))
        soup |= {"stage": stage, "against": names[best]} | kitchen.recall(stage, stage_name(best))
        counts = {"num_images": dataset.num_images, "num_captions": dataset.num_captions}
        record["data"] = {"source": dataset.source, "split": dataset.split, **counts, "sha256": dataset.sha256()}
    if is_greedy:
        record["order"] = [names[index] for index in (members[0], *(trial.ingredient for trial in trials))]
        record["trials"] = [_trial_record(trial, names) for trial in trials]
    return record


def _trial_record(trial: Trial, names: Sequence[str]) -> dict[str, Any]:
    why = "it does not lower mean R@1" if trial.kept else "it lowers mean R@1"
    return {
        "ingredient": names[trial.ingredient],
        "stage": trial_name(trial.ingredient),
        "members_before": [names[index] for index in trial.members],
        "before": trial.before,
        "mean_R@1": trial.score,
        "kept": trial.kept,
        "why": why,
    }


def check_output(output: Path, ingredients: Sequence[Ingredient]) -> None:
    """Refuse an output folder whose contents a soup would destroy.

    Raises:
        UserError: it is a run or a checkpoint, holds another's export, or an ingredient lies where the export goes.
    """
    if found := [name for name in ("config.yaml", "config.json", "checkpoints") if (output / name).exists()]:
        raise UserError(f"{output} holds {found[0]}: it is a run or a checkpoint, not a folder for a soup; give --output a new folder")
    export = output / "export"
    check_replaceable(export)
    if taken := [ingredient.name for ingredient in ingredients if ingredient.folder == export.resolve()]:
        raise UserError(f"{taken[0]} lies where the soup would be written ({export}); give --output another folder")
    if export.is_dir() and any(export.iterdir()) and not (output / "soup.json").is_file():
        raise UserError(f"{export} is there, and {output / 'soup.json'} is not: it is no earlier soup; give --output a new folder")


def common_data(ingredients: Sequence[Ingredient]) -> DataConfig:
    """The data of the runs that all ingredients come from.

    Raises:
        UserError: some come from no run, or from runs with other data or without val.
    """
    remedy = "name the data to choose on: --data MANIFEST --split val"
    if outside := [ingredient.name for ingredient in ingredients if ingredient.run is None]:
        raise UserError(f"--greedy chooses on val, and {outside[0]} is no run that says what its val is; {remedy}")
    asked = [ingredient.run[0].data for ingredient in ingredients if ingredient.run is not None]
    keys = ("source", "image_root", "columns", "val_split")
    for ingredient, data in zip(ingredients, asked, strict=True):
        if differing := [key for key in keys if getattr(data, key) != getattr(asked[0], key)]:
            raise UserError(f"{ingredients[0].name} and {ingredient.name} have other data (data.{differing[0]}); {remedy}")
    if asked[0].val_split is None:
        raise UserError(f"{ingredients[0].name}: data.val_split is null; {remedy}")
    return asked[0]


def read_split(data: DataConfig) -> RetrievalSet:
    """The split to measure on, `val_split`.

    Raises:
        UserError: with every fault of the manifest.
    """
    wanted = [data.val_split] if data.val_split is not None else []
    manifest = read_manifest(data.source, image_root=data.image_root, columns=data.columns, require_splits=wanted)
    return load_split(manifest, data.val_split)

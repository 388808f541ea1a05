"""First stages of one evaluation: checkpoints alone, several of them together, and either with expanded queries.

    model, model-2, ...    each checkpoint alone
    ensemble               several together (docs/ensembles.md)
    model+synonyms         the first, or the ensemble, with further views of what asks (docs/expansion.md)

Every checkpoint embeds a set once, whatever is made of it. What is chosen (an ensemble's weights, how views are pooled) is chosen on
another set, before anything is measured.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch

from eval.checkpoint import load_siglip
from eval.dataset import RetrievalSet
from eval.errors import reading
from eval.evaluator import Figures, Stage
from eval.first_stage import Embedded, embed, find, progress_bar
from eval.processes import Processes
from eval.progress import bar
from eval.ranking import DIRECTIONS, Direction
from rerank.blend import rank_blend
from rerank.ensemble import INPUTS_KEY
from rerank.ensemble_choice import EnsembleChoice, choose_ensemble
from rerank.expansion import Expansion
from rerank.expansion_choice import PoolChoice, choose_pool
from rerank.views import Combination, Member, Pool, Pooling, Views

ENSEMBLE = "ensemble"
MINIMUM_DEPTH = 10  # what a report shows
ALL_VIEWS = 2**31 - 1
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True)
class Combining:
    """What is made of the checkpoints beside measuring each alone.

    Attributes:
        lead: name of the checkpoint whose queries are expanded.
        members: names of the ensemble's checkpoints, the lead first; empty: no ensemble.
        weights: of the members; None: chosen where there is a set to choose on, else equal.
        combinations: how members' scores become one; several: the best is chosen.
        expansions: what queries are expanded by, each an arm of its own, by the ending of its stages' names.
        pool: how views are pooled where nothing is chosen: one.
        poolings: what is tried where it is chosen.
    """

    lead: str = "model"
    members: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    combinations: tuple[Combination, ...] = ("logits",)
    expansions: Mapping[str, Expansion] = field(default_factory=dict)
    pool: Pool = Pool("mean", ALL_VIEWS, 1.0)
    poolings: tuple[Pooling, ...] = POOLINGS

    @property
    def targets(self) -> list[str]:
        """The stages whose queries are expanded."""
        return [self.lead] + ([ENSEMBLE] if self.members else [])

    @property
    def names(self) -> list[str]:
        """The stages there will be beside the checkpoints'."""
        return ([ENSEMBLE] if self.members else []) + [stage for stage, _ in self._expanded()]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(stage, against): the ensemble against each member, what is expanded against what is not."""
        return [(ENSEMBLE, member) for member in self.members] + self._expanded()

    @property
    def chooses(self) -> bool:
        """True if a set to choose on would decide something."""
        return bool(self.expansions) or bool(self.members and self.weights is None)

    def _expanded(self) -> list[tuple[str, str]]:
        return [(f"{target}+{name}", target) for name in self.expansions for target in self.targets]


@dataclass(frozen=True)
class _Read:
    """A set as one checkpoint embeds it.

    Attributes:
        views: of the side that is expanded, by expansion; empty for a checkpoint that is expanded nowhere.
        view_seconds: what embedding them took.
        weight_bytes: of the checkpoint's parameters in memory.
    """

    embedded: Embedded
    views: Mapping[str, Views]
    view_seconds: Mapping[str, float]
    weight_bytes: int


@dataclass
class FirstStages:
    """Makes the first stages of a set; call on every process.

    Attributes:
        checkpoints: folder or hub id of each by name, in the order of the report.
        depth: how many of the best to keep for each query (at least 10 are kept, for the report).
        on_rows: called with each number of rows embedded on this process; what it raises ends the work.
        ensemble, pools: what was chosen: for the ensemble, and for each expanded stage.
        chosen_on: the set it was chosen on.
    """

    checkpoints: Mapping[str, str]
    combining: Combining
    depth: int
    device: torch.device
    processes: Processes = Processes()
    num_workers: int = 0
    strip_punctuation: bool = False
    on_rows: Callable[[int], Any] = lambda rows: None
    ensemble: EnsembleChoice | None = None
    pools: dict[str, PoolChoice] = field(default_factory=dict)
    chosen_on: RetrievalSet | None = None
    _further: dict[tuple[int, str], Further] = field(default_factory=dict)
    _read: dict[tuple[int, str], _Read] = field(default_factory=dict)
    _sets: list[RetrievalSet] = field(default_factory=list)

    def prepare(self, datasets: Sequence[RetrievalSet]) -> None:
        """Read every expansion of these sets: what is refused is refused before the work.

        Raises:
            UserError: an expansion cannot be used.
        """
        for dataset in datasets:
            for name in self.combining.expansions:
                self.further(name, dataset)

    def choose(self, dataset: RetrievalSet, *, ensemble: bool = True, expansion: bool = True) -> None:
        """Choose on a set what :meth:`stages` then takes on any: the members' weights and rule, and how views are pooled.

        Args:
            ensemble, expansion: what is chosen; what is not is as `combining` says.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        asked = self.combining
        self.chosen_on = dataset
        if ensemble and asked.members and asked.weights is None:
            self.ensemble = choose_ensemble(self._members(asked.members, dataset), dataset, asked.combinations, processes=self.processes)
        for name in asked.expansions if expansion else ():
            for target in asked.targets:
                names, weights, combination = self.composition(target)
                members, side = self._members(names, dataset, name), asked.expansions[name].side
                self.pools[f"{target}+{name}"] = choose_pool(
                    members, weights, combination, dataset, side, asked.poolings, processes=self.processes
                )

    def stages(self, dataset: RetrievalSet) -> list[Stage]:
        """Every first stage of a set: the checkpoints', the ensemble, the expanded ones.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        asked = self.combining
        stages = [self.plain(name, dataset) for name in self.checkpoints]
        stages += [self._blended(ENSEMBLE, dataset, ENSEMBLE, None)] if asked.members else []
        return stages + [
            self._blended(f"{target}+{name}", dataset, target, name) for name in asked.expansions for target in asked.targets
        ]

    def plain(self, name: str, dataset: RetrievalSet) -> Stage:
        """A checkpoint alone.

        Raises:
            UserError: the checkpoint or a picture cannot be used.
        """
        return find(name, self.read(name, dataset).embedded, dataset, depth=self.depth, processes=self.processes)

    def composition(self, target: str) -> tuple[tuple[str, ...], tuple[float, ...], Combination]:
        """(members, weights of sum 1, combination) of the ensemble; of a checkpoint alone, itself."""
        asked = self.combining
        if target != ENSEMBLE:
            return (target,), (1.0,), "logits"
        if self.ensemble is not None:
            return asked.members, tuple(self.ensemble.weights), self.ensemble.combination
        weights = asked.weights or (1.0,) * len(asked.members)
        return asked.members, tuple(weight / sum(weights) for weight in weights), asked.combinations[0]

    def pool(self, stage: str) -> Pool | None:
        """How an expanded stage pools its views; None: it was chosen to leave them out."""
        return self.pools[stage].pool if stage in self.pools else self.combining.pool

    def _blended(self, stage: str, dataset: RetrievalSet, target: str, expansion: str | None) -> Stage:
        """The ensemble, or a stage with further views; a member of weight 0 is left out, and costs nothing."""
        names, weights, combination = self.composition(target)
        heard = {name: weight for name, weight in zip(names, weights, strict=True) if weight > 0}
        pool = self.pool(stage) if expansion is not None else None
        pools = pools_at(self.combining.expansions[expansion].side, pool) if expansion is not None and pool is not None else {}
        started = time.perf_counter()
        rankings = rank_blend(
            self._members(list(heard), dataset, expansion),
            dataset,
            weights=list(heard.values()),
            combination=combination,
            pools=pools,
            depth=max(self.depth, MINIMUM_DEPTH),
            processes=self.processes,
        )
        read = {name: self.read(name, dataset) for name in heard}
        cost = _cost(list(read.values()), expansion if pools else None, time.perf_counter() - started)
        inputs = [dict(one.embedded.inputs) | {"checkpoint": name, "weight": heard[name]} for name, one in read.items()]
        return Stage(stage, rankings, cost, inputs={INPUTS_KEY: inputs, "combination": combination})

    def _members(self, names: Sequence[str], dataset: RetrievalSet, expansion: str | None = None) -> list[Member]:
        """Checkpoints as members, with one expansion's further views or none."""
        return [_member(self.read(name, dataset), expansion, self.combining.expansions) for name in names]

    def further(self, expansion: str, dataset: RetrievalSet) -> Further:
        """What an expansion adds to a set, in words or pictures; made once."""
        key = self._key(dataset), expansion
        if key not in self._further:
            self._further[key] = self.combining.expansions[expansion].of(dataset)
        return self._further[key]

    def read(self, name: str, dataset: RetrievalSet) -> "_Read":
        """A set as a checkpoint embeds it; made once."""
        key = self._key(dataset), name
        if key not in self._read:
            self._read[key] = self._embed(name, dataset)
        return self._read[key]

    def _key(self, dataset: RetrievalSet) -> int:
        for number, known in enumerate(self._sets):
            if known is dataset:
                return number
        self._sets.append(dataset)
        return len(self._sets) - 1

    def _embed(self, name: str, dataset: RetrievalSet) -> _Read:
        with self.processes.jointly(), reading():
            model, inputs = load_siglip(self.checkpoints[name], strip_punctuation=self.strip_punctuation)
            model.to(self.device)  # type: ignore[arg-type]  # transformers wraps it
        shared: Any = {"processes": self.processes, "num_workers": self.num_workers}
        with progress_bar(f"embedding ({name}, {dataset.split or 'all rows'})", dataset, self.processes) as shown:
            embedded = embed(model, inputs, dataset, **shared, on_progress=self._advance(shown))
        views: dict[str, Views] = {}
        seconds: dict[str, float] = {}
        for expansion in self.combining.expansions if name in {self.combining.lead, *self.combining.members} else ():
            started = time.perf_counter()
            with bar(0, f"embedding ({name}, {expansion})", "row", show=self.processes.is_main, leave=False) as shown:
                further = self.further(expansion, dataset)
                views[expansion] = embed_views(model, inputs, further, embedded, **shared, on_progress=self._advance(shown))
            seconds[expansion] = time.perf_counter() - started
        weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return _Read(embedded, views, seconds, weight_bytes)

    def _advance(self, shown: Any) -> Callable[[int], None]:
        def advance(rows: int) -> None:
            shown.update(rows)
            self.on_rows(rows)

        return advance


def _member(read: _Read, expansion: str | None, expansions: Mapping[str, Expansion]) -> Member:
    images, captions = Views.plain(read.embedded.images_ID), Views.plain(read.embedded.captions_CD)
    if expansion is not None and expansions[expansion].side == "captions":
        captions = read.views[expansion]
    elif expansion is not None:
        images = read.views[expansion]
    return Member(images, captions, read.embedded.scale, read.embedded.bias, read.embedded.device)


def _cost(members: Sequence[_Read], expansion: str | None, search_seconds: float) -> dict[str, Any]:
    """What a stage took: every member embeds every picture and caption, and the further views of one expansion."""
    image_seconds = sum(one.embedded.image_seconds for one in members)
    caption_seconds = sum(one.embedded.caption_seconds for one in members)
    view_seconds = sum(one.view_seconds[expansion] for one in members) if expansion is not None else 0.0
    return {
        "seconds": image_seconds + caption_seconds + view_seconds + search_seconds,
        "image_seconds": image_seconds,
        "caption_seconds": caption_seconds,
        "view_seconds": view_seconds,
        "search_seconds": search_seconds,
        "pairs_scored": 0,
    }

"""First stages of one evaluation: checkpoints alone, several of them together, and either with expanded queries.

    model, model-2, ...    each checkpoint alone
    ensemble               several together (docs/ensembles.md)
    model+synonyms         the first, or the ensemble, with further views of what asks (docs/expansion.md)

Every checkpoint embeds a set once, whatever is made of it. What is chosen (an ensemble's weights, how views are pooled) is chosen on
another set, before anything is measured.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import Figures
from eval.processes import Processes
from eval.progress import bar
from eval.search.retrieve import find
from eval.search.stage import Stage
from rerank.combine.combine import rank_ensemble
from rerank.combine.embedded_sets import EmbeddedSets
from rerank.combine.ensemble import INPUTS_KEY
from rerank.combine.ensemble_weights import EnsembleChoice, choose_ensemble, simplex
from rerank.combine.expansion_effects import ranks_of_each_view
from rerank.combine.pooling import PoolChoice, choose_pool, pools_at
from rerank.combine.record import EnsembleStage, ExpandedStage, combined_sections, expansion_table
from rerank.combine.spec import ENSEMBLE, Combining
from rerank.combine.views import Combination, Pool

MINIMUM_DEPTH = 10  # what a report shows


@dataclass
class FirstStages:
    """Makes the first stages of a set; call on every process.

    Attributes:
        combining: what is made of the checkpoints.
        sets: how they embed a set.
        depth: how many of the best to keep for each query (at least 10 are kept, for the report).
        ensemble, pools: what was chosen: for the ensemble, and for each expanded stage.
        chosen_on: the set it was chosen on.
        view_ranks: what each further view of an expanded stage does alone, on the set that is measured.
    """

    combining: Combining
    sets: EmbeddedSets
    depth: int
    ensemble: EnsembleChoice | None = None
    pools: dict[str, PoolChoice] = field(default_factory=dict)
    chosen_on: RetrievalSet | None = None
    view_ranks: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def processes(self) -> Processes:
        """The processes that work together."""
        return self.sets.processes

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
            members = [self.sets.member(name, dataset) for name in asked.members]
            total = len(asked.combinations) * len(simplex(len(members)))
            with self._trying(f"choosing weights on {dataset.split}", total) as tried:
                self.ensemble = choose_ensemble(members, dataset, asked.combinations, self.processes, on_tried=tried)
        for name in asked.expansions if expansion else ():
            for target in asked.targets:
                self.pools[f"{target}+{name}"] = self._chosen_pool(target, name, dataset)

    def _chosen_pool(self, target: str, expansion: str, dataset: RetrievalSet) -> PoolChoice:
        names, weights, combination = self.composition(target)
        members = [self.sets.member(name, dataset, expansion) for name in names]
        side = self.sets.side(expansion, dataset)
        with self._trying(f"choosing how {target}+{expansion} pools on {dataset.split}", None) as tried:
            return choose_pool(members, weights, combination, dataset, side, self.combining.poolings, self.processes, on_tried=tried)

    @contextmanager
    def _trying(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar over the points of a choice; between two of them a signal is heeded."""
        with bar(total, text, "point", show=self.processes.is_main, leave=False) as shown:

            def tried(points: int) -> None:
                shown.update(points)
                self.sets.on_rows(0)

            yield tried

    def measured(self, dataset: RetrievalSet) -> list[Stage]:
        """:meth:`stages` of the set that is reported on, and what each further view does there, for :meth:`sections`.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        stages, asked = self.stages(dataset), self.combining
        for name in asked.expansions:
            for target in asked.targets:
                if (pool := self.pool(f"{target}+{name}")) is not None:
                    names, weights, combination = self.composition(target)
                    members = [self.sets.member(one, dataset, name) for one in names]
                    side = self.sets.side(name, dataset)
                    ranks = ranks_of_each_view(members, weights, combination, dataset, side, pool, self.processes)
                    self.view_ranks[f"{target}+{name}"] = ranks
        return stages

    def stages(self, dataset: RetrievalSet) -> list[Stage]:
        """Every first stage of a set: the checkpoints', the ensemble, the expanded ones.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        asked = self.combining
        stages = [self.plain(name, dataset) for name in self.sets.checkpoints]
        stages += [self._blended(ENSEMBLE, dataset, ENSEMBLE, None)] if asked.members else []
        return stages + [self._blended(f"{target}+{name}", dataset, target, name) for name in asked.expansions for target in asked.targets]

    def plain(self, name: str, dataset: RetrievalSet) -> Stage:
        """A checkpoint alone.

        Raises:
            UserError: the checkpoint or a picture cannot be used.
        """
        return find(name, self.sets.read(name, dataset).embedded, dataset, depth=self.depth, processes=self.processes)

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
        used = expansion if pool is not None else None
        members = [self.sets.member(name, dataset, used) for name in heard]
        started = time.perf_counter()
        rankings = rank_ensemble(
            members,
            dataset,
            weights=list(heard.values()),
            combination=combination,
            pools={} if used is None else pools_at(self.sets.side(used, dataset), pool),
            depth=max(self.depth, MINIMUM_DEPTH),
            processes=self.processes,
        )
        cost = self.sets.cost(list(heard), dataset, used, time.perf_counter() - started)
        inputs = [dict(self.sets.read(name, dataset).embedded.inputs) | {"stage": name, "weight": heard[name]} for name in heard]
        return Stage(stage, rankings, cost, inputs={INPUTS_KEY: inputs, "combination": combination})

    def sections(self, figures: Figures, dataset: RetrievalSet, scorer_name: str | None = None) -> dict[str, Any]:
        """Further keys of report.json: `ensemble` and `expansion`, where there are such arms.

        Args:
            figures: with the stages of :meth:`measured`.
            scorer_name: of the reranker; None: there is none.
        """
        return combined_sections(figures, dataset, self._ensembles(figures, dataset, scorer_name), self._expansions(dataset))

    def table(self, figures: Figures, dataset: RetrievalSet) -> pa.Table | None:
        """What expansions.parquet holds; None where no expansion is in use."""
        return expansion_table(figures, dataset, self._expansions(dataset))

    def _ensembles(self, figures: Figures, dataset: RetrievalSet, scorer_name: str | None) -> list[EnsembleStage]:
        if not self.combining.members:
            return []
        names, weights, combination = self.composition(ENSEMBLE)
        heard = [name for name, weight in zip(names, weights, strict=True) if weight > 0]
        reranked = f"{names[0]}+{scorer_name}"
        return [
            EnsembleStage(
                ENSEMBLE,
                names,
                weights,
                combination,
                self.sets.held(heard, dataset),
                self.sets.held(names[:1], dataset),
                reranked if reranked in figures.stages else None,
                self.ensemble,
                self.chosen_on if self.ensemble is not None else None,
            )
        ]

    def _expansions(self, dataset: RetrievalSet) -> list[ExpandedStage]:
        return [
            ExpandedStage(
                stage := f"{target}+{name}",
                target,
                self.sets.side(name, dataset),
                self.sets.further(name, dataset),
                self.pool(stage),
                self.view_ranks.get(stage, []),
                self.pools.get(stage),
                self.chosen_on if stage in self.pools else None,
            )
            for name in self.combining.expansions
            for target in self.combining.targets
        ]

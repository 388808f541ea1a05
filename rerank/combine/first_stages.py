"""First stages of one evaluation: checkpoints alone, several of them together, and either with expanded queries.

    model, model-2, ...    each checkpoint alone
    ensemble               several together (docs/ensembles.md)
    model+synonyms         the first, or the ensemble, with additional views of one side (docs/expansion.md)

Every checkpoint embeds a set once, whatever is made of it. What is chosen (an ensemble's weights, how views are pooled) is chosen on
another set, before anything is measured.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import Figures
from eval.progress import bar
from eval.report.section import Section
from eval.search.retrieve import find
from eval.search.stage import Stage
from rerank.combine.combine import rank_ensemble
from rerank.combine.embedded_sets import EmbeddedSets
from rerank.combine.ensemble import INPUTS_KEY
from rerank.combine.ensemble_weights import EnsembleChoice, choose_ensemble, simplex
from rerank.combine.expansion_effects import ranks_of_each_view
from rerank.combine.pooling import PoolChoice, choose_pool, pools_at
from rerank.combine.record import EnsembleStage, ExpandedStage, combined_sections, expansion_table
from rerank.combine.spec import Combining
from rerank.combine.views import Combination, Pool
from rerank.stage_names import ENSEMBLE

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
        view_ranks: what each additional view of an expanded stage does alone, on the set that is measured.
    """

    combining: Combining
    sets: EmbeddedSets
    depth: int
    ensemble: EnsembleChoice | None = None
    pools: dict[str, PoolChoice] = field(default_factory=dict)
    chosen_on: RetrievalSet | None = None
    view_ranks: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def choose(self, dataset: RetrievalSet) -> None:
        """Choose on a set, as `combining` asks: the members' weights and rule, how views are pooled. :meth:`stages` of any set takes it.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        asked = self.combining
        self.chosen_on = dataset
        if asked.chooses_ensemble:
            members = [self.sets.member(name, dataset) for name in asked.ensemble]
            total = len(asked.rules) * len(simplex(len(members)))
            with self._trying(f"choosing weights on {dataset.split}", total) as tried:
                self.ensemble = choose_ensemble(members, dataset, asked.rules, self.sets.execution.processes, on_tried=tried)
        for stage, target, name in asked.expanded if asked.chooses_expansion else ():
            self.pools[stage] = self._chosen_pool(stage, target, name, dataset)

    def _chosen_pool(self, stage: str, target: str, expansion: str, dataset: RetrievalSet) -> PoolChoice:
        names, weights, combination = self.composition(target)
        members = [self.sets.member(name, dataset, expansion) for name in names]
        side, processes = self.sets.side(expansion, dataset), self.sets.execution.processes
        with self._trying(f"choosing how {stage} pools on {dataset.split}", None) as tried:
            return choose_pool(members, weights, combination, dataset, side, self.combining.poolings, processes, on_tried=tried)

    @contextmanager
    def _trying(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar over the points of a choice; between two of them a signal is heeded."""
        with bar(total, text, "point", show=self.sets.execution.processes.is_main, leave=False) as shown:

            def tried(points: int) -> None:
                shown.update(points)
                self.sets.execution.on_progress(0)

            yield tried

    def measured(self, dataset: RetrievalSet) -> list[Stage]:
        """:meth:`stages` of the set that is reported on, and what each additional view does there, for :meth:`sections`.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        stages = self.stages(dataset)
        for stage, target, name in self.combining.expanded:
            if (pool := self.pool(stage)) is not None:
                names, weights, combination = self.composition(target)
                members = [self.sets.member(one, dataset, name) for one in names]
                side, processes = self.sets.side(name, dataset), self.sets.execution.processes
                self.view_ranks[stage] = ranks_of_each_view(members, weights, combination, dataset, side, pool, processes)
        return stages

    def stages(self, dataset: RetrievalSet, names: Collection[str] | None = None) -> list[Stage]:
        """The first stages of a set: the checkpoints', the ensemble, the expanded ones.

        Args:
            names: of those wanted; None: all.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        made: list[tuple[str, Callable[[], Stage]]] = [(name, partial(self.plain, name, dataset)) for name in self.sets.checkpoints]
        if self.combining.members:
            made.append((ENSEMBLE, partial(self._combined, ENSEMBLE, dataset, ENSEMBLE, None)))
        made += [(stage, partial(self._combined, stage, dataset, target, name)) for stage, target, name in self.combining.expanded]
        return [make() for name, make in made if names is None or name in names]

    def plain(self, name: str, dataset: RetrievalSet) -> Stage:
        """A checkpoint alone.

        Raises:
            UserError: the checkpoint or a picture cannot be used.
        """
        return find(name, self.sets.read(name, dataset).embedded, dataset, depth=self.depth, processes=self.sets.execution.processes)

    def composition(self, target: str) -> tuple[tuple[str, ...], tuple[float, ...], Combination]:
        """(members, weights of sum 1, combination) of the ensemble; of a checkpoint alone, itself."""
        asked = self.combining
        if target != ENSEMBLE:
            return (target,), (1.0,), "logits"
        if self.ensemble is not None:
            return asked.ensemble, tuple(self.ensemble.weights), self.ensemble.combination
        weights = asked.weights or (1.0,) * len(asked.ensemble)
        return asked.ensemble, tuple(weight / sum(weights) for weight in weights), asked.rules[0]

    def pool(self, stage: str) -> Pool | None:
        """How an expanded stage pools its views; None: it was chosen to leave them out."""
        return self.pools[stage].pool if stage in self.pools else self.combining.pool

    def _combined(self, stage: str, dataset: RetrievalSet, target: str, expansion: str | None) -> Stage:
        """The ensemble, or a stage with additional views; a member of weight 0 is left out, and costs nothing."""
        names, weights, combination = self.composition(target)
        active = {name: weight for name, weight in zip(names, weights, strict=True) if weight > 0}
        pool = self.pool(stage) if expansion is not None else None
        used = expansion if pool is not None else None
        members = [self.sets.member(name, dataset, used) for name in active]
        started = time.perf_counter()
        rankings = rank_ensemble(
            members,
            dataset,
            weights=list(active.values()),
            combination=combination,
            pools={} if used is None else pools_at(self.sets.side(used, dataset), pool),
            depth=max(self.depth, MINIMUM_DEPTH),
            processes=self.sets.execution.processes,
        )
        cost = self.sets.cost(list(active), dataset, used, time.perf_counter() - started)
        inputs = [dict(self.sets.read(name, dataset).embedded.inputs) | {"stage": name, "weight": active[name]} for name in active]
        return Stage(stage, rankings, cost, inputs={INPUTS_KEY: inputs, "combination": combination})

    def sections(self, figures: Figures, dataset: RetrievalSet, reranked: str | None = None) -> list[Section]:
        """`ensemble` and `expansion` of a report, where there are such stages.

        Args:
            figures: with the stages of :meth:`measured`.
            reranked: the reranked variant of the ensemble's first member; None: there is none.
        """
        return combined_sections(figures, dataset, self._ensembles(dataset, reranked), self._expansions(dataset))

    def table(self, figures: Figures, dataset: RetrievalSet) -> pa.Table | None:
        """What expansions.parquet holds; None where no expansion is in use."""
        return expansion_table(figures, dataset, self._expansions(dataset))

    def _ensembles(self, dataset: RetrievalSet, reranked: str | None) -> list[EnsembleStage]:
        if not self.combining.members:
            return []
        names, weights, combination = self.composition(ENSEMBLE)
        active = [name for name, weight in zip(names, weights, strict=True) if weight > 0]
        return [
            EnsembleStage(
                stage=ENSEMBLE,
                members=names,
                weights=weights,
                combination=combination,
                footprint=self.sets.footprint(active, dataset),
                first_footprint=self.sets.footprint(names[:1], dataset),
                reranked=reranked,
                choice=self.ensemble,
                chosen_on=self.chosen_on if self.ensemble is not None else None,
            )
        ]

    def _expansions(self, dataset: RetrievalSet) -> list[ExpandedStage]:
        return [
            ExpandedStage(
                stage=stage,
                against=target,
                name=name,
                side=self.sets.side(name, dataset),
                texts=self.sets.additional(name, dataset),
                pool=self.pool(stage),
                view_ranks=self.view_ranks.get(stage, []),
                choice=self.pools.get(stage),
                chosen_on=self.chosen_on if stage in self.pools else None,
            )
            for stage, target, name in self.combining.expanded
        ]

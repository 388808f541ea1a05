"""First stages of one evaluation: checkpoints alone, several of them together, and either with expanded queries.

    model, model-2, ...    each checkpoint alone
    ensemble               several together (docs/ensembles.md)
    model+synonyms         the first, or the ensemble, with additional views of one side (docs/expansion.md)

Every checkpoint embeds a set once, whatever is made of it. What is chosen (an ensemble's weights, how views are pooled) is chosen on
another set, before anything is measured.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from eval.dataset.retrieval_set import RetrievalSet
from eval.progress import bar
from eval.search.retrieve import find
from eval.search.stage import Stage
from rerank.combine.combine import rank_ensemble
from rerank.combine.embedded_sets import EmbeddedSets
from rerank.combine.ensemble_weights import choose_ensemble, simplex
from rerank.combine.expansion_effects import ExpandedStage, ranks_of_each_view
from rerank.combine.pooling import ViewSearch, choose_pool, pools_at
from rerank.combine.record import EnsembleStage
from rerank.combine.rules import Combination
from rerank.combine.spec import Combining
from rerank.combine.tuning import TunedSetting
from rerank.combine.views import LateFusion, Pool
from rerank.stage_names import ENSEMBLE

MINIMUM_DEPTH = 10  # what a report shows


@dataclass
class FirstStages:
    """Makes the first stages of a set; call on every process.

    Attributes:
        combining: what is made of the checkpoints.
        sets: how they embed a set.
        depth: how many of the best to keep for each query, MINIMUM_DEPTH or more.
        ensemble, pools: what was chosen: for the ensemble, and for each expanded stage.
        other_gallery: the checkpoints' stages over the other gallery of `sets.galleries`, once `stages` was asked for the set.
    """

    combining: Combining
    sets: EmbeddedSets
    depth: int
    ensemble: TunedSetting[LateFusion] | None = None
    pools: dict[str, TunedSetting[Pool | None]] = field(default_factory=dict)
    other_gallery: list[Stage] = field(default_factory=list)

    def choose(self, dataset: RetrievalSet) -> None:
        """Choose on a set, as `combining` asks: the members' weights and rule, how views are pooled. :meth:`stages` of any set takes it.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        asked, processes = self.combining, self.sets.execution.processes
        if asked.chooses_ensemble:
            members = [self.sets.member(name, dataset) for name in asked.ensemble]
            total = len(asked.rules) * len(simplex(len(members)))
            with self._trying(f"choosing weights on {dataset.split}", total) as tried:
                self.ensemble = choose_ensemble(members, dataset, asked.rules, processes, on_tried=tried)
        for stage, target, name in asked.expanded if asked.chooses_expansion else ():
            search = self._search(target, name, dataset)
            with self._trying(f"choosing how {stage} pools on {dataset.split}", None) as tried:
                self.pools[stage] = choose_pool(search, asked.poolings, processes, on_tried=tried)

    def _search(self, target: str, expansion: str, dataset: RetrievalSet) -> ViewSearch:
        active, combination = self._active(target)
        members = [self.sets.member(name, dataset, expansion) for name in active]
        return ViewSearch(members, LateFusion(combination, tuple(active.values())), dataset, self.sets.side(expansion, dataset))

    @contextmanager
    def _trying(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar over the points of a choice; between two of them a signal is heeded."""
        with bar(total, text, "point", show=self.sets.execution.processes.is_main, leave=False) as shown:

            def tried(points: int) -> None:
                shown.update(points)
                self.sets.execution.on_progress(0)

            yield tried

    def expanded_stages(self, dataset: RetrievalSet) -> list[ExpandedStage]:
        """The stages with additional views for the report of a set, and what each view does there; errors as of :meth:`stages`."""
        found = []
        for stage, target, name in self.combining.expanded:
            search, pool = self._search(target, name, dataset), self.pool(stage)
            alone = ranks_of_each_view(search, pool, self.sets.execution.processes) if pool is not None else []
            views = self.sets.additional(name, dataset)
            found.append(ExpandedStage(stage, target, name, search.side, views, pool, alone, self.pools.get(stage)))
        return found

    def stages(self, dataset: RetrievalSet, names: Collection[str] | None = None) -> list[Stage]:
        """The first stages of a set: the checkpoints', the ensemble, the expanded ones.

        Args:
            names: of those wanted; None: all.

        Raises:
            UserError: a checkpoint, a picture or an expansion cannot be used.
        """
        stages = []
        for name in self.sets.checkpoints:
            if names is None or name in names:
                read, processes = self.sets.read(name, dataset), self.sets.execution.processes
                stages.append(find(name, read.embedded, dataset, depth=self.depth, processes=processes))
                if read.other is not None:
                    self.other_gallery.append(find(name, read.other, self.sets.galleries[dataset], processes=processes))
        wanted = [each for each in self.combining.combined if names is None or each[0] in names]
        return stages + [self._combined(stage, dataset, target, expansion) for stage, target, expansion in wanted]

    def fusion(self) -> LateFusion:
        """How the ensemble's members are combined."""
        if self.ensemble is not None:
            return self.ensemble.setting
        weights = self.combining.weights or (1.0,) * len(self.combining.ensemble)
        return LateFusion(self.combining.rules[0], tuple(weight / sum(weights) for weight in weights))

    def _active(self, target: str) -> tuple[dict[str, float], Combination]:
        """Weight by member, those above 0, and rule of the ensemble; of a checkpoint alone, itself."""
        if target != ENSEMBLE:
            return {target: 1.0}, "logits"
        fusion = self.fusion()
        return {name: one for name, one in zip(self.combining.ensemble, fusion.weights, strict=True) if one > 0}, fusion.combination

    def pool(self, stage: str) -> Pool | None:
        """How an expanded stage pools its views; None: it was chosen to leave them out."""
        return self.pools[stage].setting if stage in self.pools else self.combining.pool

    def _combined(self, stage: str, dataset: RetrievalSet, target: str, expansion: str | None) -> Stage:
        """The ensemble, or a stage with additional views; a member of weight 0 is left out, and costs nothing."""
        active, combination = self._active(target)
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
            depth=self.depth,
            processes=self.sets.execution.processes,
        )
        cost = self.sets.cost(list(active), dataset, used, time.perf_counter() - started)
        inputs = [dict(self.sets.read(name, dataset).embedded.inputs) | {"stage": name, "weight": active[name]} for name in active]
        return Stage(stage, rankings, cost, inputs={"members": inputs, "combination": combination})

    def ensemble_stage(self, dataset: RetrievalSet, stages: Sequence[Stage], reranked: str | None) -> EnsembleStage | None:
        """The ensemble for the report of a set, if there is one.

        Args:
            stages: :meth:`stages` of the set.
            reranked: the reranked variant of its first member, if there is one.
        """
        if not self.combining.members:
            return None
        return EnsembleStage(
            members=self.combining.ensemble,
            first=next(stage for stage in stages if stage.name == self.combining.checkpoint),
            fusion=self.fusion(),
            footprint=self.sets.footprint(list(self._active(ENSEMBLE)[0]), dataset),
            first_footprint=self.sets.footprint(self.combining.ensemble[:1], dataset),
            reranked=reranked,
            choice=self.ensemble,
        )

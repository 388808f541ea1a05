"""What `python -m eval --rerank` is asked to do with its first stages: which reranked arms there will be, and their making."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import Figures
from eval.processes import Processes
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank.reorder.record import chosen_sections
from rerank.reorder.skipping import needed_lists
from rerank.reorder.stages import check_top_k, reranked, score_stages
from rerank.reorder.tuned_stages import ADAPTIVE, Asked, Chosen, adaptive_stage, choose_stages, chosen_stages
from rerank.scorers.scorer import PairScorer
from rerank.scoring.pair_scores import PairScores, complete_scores
from rerank.scoring.score_cache import ScoreCache
from rerank.scoring.time_budget import Budget, measure_pace, pick_top_k


@dataclass(frozen=True)
class Plan:
    """How first stages are reranked.

    Attributes:
        top_k: candidates per query; the most of them, where there is a time budget.
        seconds: the time budget of the measured split's scoring; None: none.
        skip_margin: what trails the first of its query by so much is not scored, and no arm scores everything; None: all is scored.
        arms: what is chosen on another split.
    """

    top_k: int
    seconds: float | None = None
    skip_margin: float | None = None
    arms: Asked = Asked(fusion=False, max_loss=None)

    def pairs(self, names: Sequence[str], scorer_name: str) -> list[tuple[str, str]]:
        """(stage, against) of every arm by default, for first stages of these names."""
        if self.skip_margin is not None:
            return [(f"{name}+{scorer_name}+{ADAPTIVE}", name) for name in names]
        twins = [f"{name}+{scorer_name}" for name in names]
        return list(zip(twins, names, strict=True)) + [pair for twin in twins for pair in self.arms.pairs(twin)]

    def names(self, names: Sequence[str], scorer_name: str) -> list[str]:
        """Every arm there will be."""
        if self.skip_margin is not None:
            return [stage for stage, _ in self.pairs(names, scorer_name)]
        twins = [f"{name}+{scorer_name}" for name in names]
        return twins + [arm for twin in twins for arm in self.arms.names(twin)]

    def stages(
        self,
        dataset: RetrievalSet,
        firsts: Sequence[Stage],
        scorer: PairScorer,
        *,
        choose_on: tuple[RetrievalSet, Callable[[RetrievalSet], Sequence[Stage]]] | None = None,
        kept: ScoreCache | None = None,
        processes: Processes = Processes(),
    ) -> "Reranked":
        """Score what is needed, and make every arm; the same on every process. The main one prints what was found of a time budget.

        Args:
            choose_on: the split that `arms` are chosen on, and what retrieves the first stages of a split; None: nothing is chosen.
            kept: scores that earlier runs kept on disk; the time budget counts on none.

        Raises:
            UserError: top_k exceeds the gallery, the time is too little, a picture does not decode, or a score is not finite.
        """
        budget = self._budget(dataset, firsts, scorer, processes)
        if budget is not None and processes.is_main:
            print(f"budget   {budget}", flush=True)
        top_k = self.top_k if budget is None else budget.top_k
        if self.skip_margin is not None:
            return self._skipping(dataset, firsts, scorer, top_k, budget, kept, processes)
        scores = score_stages(dataset, firsts, scorer, top_k, kept=kept, processes=processes)
        stages = reranked(firsts, scores, scorer.name, top_k)
        if choose_on is None:
            return Reranked(stages, scores, [], budget)
        other, retrieve = choose_on
        firsts_there = retrieve(other)
        scores_there = score_stages(other, firsts_there, scorer, top_k, kept=kept, processes=processes)
        chosen = choose_stages(other, firsts_there, scores_there, scorer.name, top_k, self.arms)
        return Reranked(stages + chosen_stages(chosen, [*firsts, *stages], scores), scores, chosen, budget)

    def _budget(self, dataset: RetrievalSet, firsts: Sequence[Stage], scorer: PairScorer, processes: Processes) -> Budget | None:
        if self.seconds is None:
            return None
        check_top_k(dataset, self.top_k)
        pace = measure_pace(scorer, dataset, processes)
        rankings = [stage.rankings[direction] for stage in firsts for direction in DIRECTIONS]
        return pick_top_k(rankings, pace, self.seconds, self.top_k, world_size=processes.world_size)

    def _skipping(
        self,
        dataset: RetrievalSet,
        firsts: Sequence[Stage],
        scorer: PairScorer,
        top_k: int,
        budget: Budget | None,
        kept: ScoreCache | None,
        processes: Processes,
    ) -> "Reranked":
        """The adaptive arm alone: what it does not need is not scored."""
        assert self.skip_margin is not None
        check_top_k(dataset, top_k)
        first, *others = [needed_lists([stage.rankings[d] for d in DIRECTIONS], top_k, self.skip_margin) for stage in firsts]
        lists = first.union(*others)
        scores = complete_scores(scorer, dataset, lists, cache=kept, processes=processes, progress=processes.is_main)
        arms = [adaptive_stage(stage, scores, f"{stage.name}+{scorer.name}", self.skip_margin, top_k) for stage in firsts]
        return Reranked(arms, scores, [], budget)


@dataclass(frozen=True)
class Reranked:
    """What came of a plan.

    Attributes:
        stages: the arms.
        scores: of the pairs of the measured split.
        chosen: what was chosen on another split.
        budget: the K that was picked; None where none was asked for.
    """

    stages: list[Stage]
    scores: PairScores
    chosen: list[Chosen] = field(default_factory=list)
    budget: Budget | None = None

    def sections(self, figures: Figures, dataset: RetrievalSet) -> dict[str, Any]:
        """Further keys of report.json: `fusion`, `adaptive`, `budget`, those that were asked for."""
        found = chosen_sections(figures, dataset, self.chosen)
        return found | ({"budget": self.budget.record()} if self.budget is not None else {})

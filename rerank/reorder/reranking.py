"""A plan carried out: first stages scored once, every reranked stage made of those scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eval.dataset.retrieval_set import RetrievalSet
from eval.execution import ONE_PROCESS, Execution
from eval.metrics.evaluate import Figures
from eval.report.section import Section
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank import stage_names as names
from rerank.reorder.plan import Plan
from rerank.reorder.record import reranking_sections
from rerank.reorder.stages import TuningResult, adaptive_stage, check_top_k, reranked, score_stages
from rerank.scorers.scorer import PairScorer
from rerank.scoring.pair_scores import PairScores
from rerank.scoring.score_cache import ScoreCache
from rerank.scoring.time_budget import Budget, measure_pace, pick_top_k


@dataclass(frozen=True)
class Reranked:
    """The reranked stages, the scores of the measured split, what was chosen on another, and the K picked where there is a time budget."""

    stages: list[Stage]
    scores: PairScores
    tuned: list[TuningResult] = field(default_factory=list)
    budget: Budget | None = None

    def sections(self, figures: Figures, dataset: RetrievalSet) -> list[Section]:
        """`fusion`, `adaptive` and `budget` of a report, those that were asked for."""
        return reranking_sections(figures, dataset, self.tuned, self.budget.record() if self.budget is not None else None)


def rerank_stages(
    plan: Plan,
    dataset: RetrievalSet,
    firsts: Sequence[Stage],
    scorer: PairScorer,
    *,
    tune_on: tuple[RetrievalSet, Callable[[RetrievalSet], Sequence[Stage]]] | None = None,
    cache: ScoreCache | None = None,
    execution: Execution = ONE_PROCESS,
) -> Reranked:
    """Score what is needed, and make every reranked stage; the same on every process. The main one prints what was found of a time budget.

    Args:
        tune_on: the split that `plan.tuning` is chosen on, and what retrieves the first stages of it that are tuned; None: nothing is.
        cache: scores that earlier runs wrote to disk; the time budget counts on none.

    Raises:
        UserError: top_k exceeds the gallery, the time is too little, a picture does not decode, or a score is not finite.
    """
    budget, processes = None, execution.processes
    if plan.seconds is not None:
        check_top_k(dataset, plan.top_k)
        pace = measure_pace(scorer, dataset, processes)
        rankings = [stage.rankings[direction] for stage in firsts for direction in DIRECTIONS]
        budget = pick_top_k(rankings, pace, plan.seconds, plan.top_k, world_size=processes.world_size)
        if processes.is_main:
            print(f"budget   {budget}", flush=True)
    top_k, margin = plan.top_k if budget is None else budget.top_k, plan.skip_margin
    scores = score_stages(dataset, firsts, scorer, top_k, skip_margin=margin, cache=cache, execution=execution)
    if margin is not None:
        adaptive = [adaptive_stage(names.reranked(first.name, scorer.name), first, scores, margin, top_k) for first in firsts]
        return Reranked(adaptive, scores, [], budget)
    stages = reranked(firsts, scores, scorer.name, top_k)
    if tune_on is None or not plan.tuning.any:
        return Reranked(stages, scores, [], budget)
    other, retrieve = tune_on
    firsts_there = retrieve(other)
    scores_there = score_stages(other, firsts_there, scorer, top_k, cache=cache, execution=execution)
    tuned = [TuningResult.on(other, first, scores_there, scorer.name, top_k, plan.tuning) for first in firsts_there]
    named = {stage.name: stage for stage in (*firsts, *stages)}
    measured = [stage for one in tuned for stage in one.stages(named[one.first.name], scores, named[one.stage].cost)]
    return Reranked(stages + measured, scores, tuned, budget)

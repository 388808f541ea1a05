"""Reranked stages that are tuned on another split: score interpolation, and adaptive reranking, in which not every candidate is scored.

They are stages as any other: evaluation knows nothing of them. Their scores are those of the one scoring of the reranked stage.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.k_sweep import sweep_sizes
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from eval.search.stage import Stage
from rerank import stage_names
from rerank.reorder.fusion import Fusion, FusionChoice, choose_weight
from rerank.reorder.plan import Tuning
from rerank.reorder.skipping import choose_margin, needed_lists, rerank_within
from rerank.reorder.stages import reranking_cost
from rerank.scoring.pair_scores import PairScores


@dataclass(frozen=True)
class TuningResult:
    """What was chosen for a reranked stage, and on what.

    Attributes:
        stage: the reranked stage.
        dataset: the split it was chosen on.
        first: the first stage on that split.
        scores: of the pairs of that split.
        fusion: None: not asked.
        margin: inf: nothing may be skipped; None: not asked.
        max_loss: what the margin was chosen for.
    """

    stage: str
    dataset: RetrievalSet
    first: Stage
    scores: PairScores
    top_k: int
    fusion: FusionChoice | None
    margin: float | None
    max_loss: float | None

    @classmethod
    def on(cls, dataset: RetrievalSet, first: Stage, scores: PairScores, scorer_name: str, top_k: int, asked: Tuning) -> "TuningResult":
        """Choose on a split where the first stage's `top_k` of both directions have been scored.

        Raises:
            UserError, LookupError: top_k is below 2, deeper than what the stage retrieved, or a pair was not scored.
        """
        fusion = choose_weight(first.rankings, scores, top_k) if asked.fusion else None
        margin = choose_margin(first.rankings, scores, top_k, asked.max_loss) if asked.max_loss is not None else None
        return cls(stage_names.reranked(first.name, scorer_name), dataset, first, scores, top_k, fusion, margin, asked.max_loss)

    def stages(self, first: Stage, scores: PairScores, reranked: Stage) -> list[Stage]:
        """The tuned stages on the split that is measured.

        Args:
            first: the first stage there.
            scores: of its pairs.
            reranked: the reranked stage there.

        Raises:
            ValueError: `reranked` is another stage than the one that was tuned.
            UserError, LookupError: a pair was not scored.
        """
        if reranked.name != self.stage or reranked.top_k is None or reranked.first_stage is None:
            raise ValueError(f"tuned for {self.stage!r}, and asked to re-order {reranked.name!r}")
        made = []
        if self.fusion is not None:
            equal = replace(self.fusion.fusion, weight=1.0)
            made.append(_interpolated(stage_names.summed(self.stage), first, scores, reranked, equal))
            made.append(_interpolated(stage_names.fused(self.stage), first, scores, reranked, self.fusion.fusion))
        if self.margin is not None:
            made.append(adaptive_stage(self.stage, first, scores, self.margin, reranked.top_k))
        return made


def _interpolated(name: str, first: Stage, scores: PairScores, reranked: Stage, fusion: Fusion) -> Stage:
    """It costs what the reranked stage does."""
    assert reranked.top_k is not None

    def at(k: int) -> dict[Direction, Ranking]:
        return {d: fusion.rank(first.rankings[d], scores, k) for d in DIRECTIONS}

    sweep = {k: {d: ranking.best_ranks() for d, ranking in at(k).items()} for k in sweep_sizes(reranked.top_k)}
    cost = dict(reranked.cost) | {"weight": fusion.weight}
    return Stage(name, at(reranked.top_k), cost, first.name, reranked.top_k, sweep)


def adaptive_stage(reranked: str, first: Stage, scores: PairScores, margin: float, top_k: int) -> Stage:
    """The adaptive variant of the stage named `reranked`; of `scores` only the pairs of `rerank.reorder.skipping.needed_lists` are needed.

    Its cost is what it takes without other stages (see `rerank.reorder.stages.reranked`).

    Raises:
        UserError, LookupError: top_k or margin cannot be used, or a pair was not scored.
    """
    started = time.perf_counter()
    rankings = {d: rerank_within(first.rankings[d], scores, top_k, margin) for d in DIRECTIONS}
    seconds = time.perf_counter() - started
    sweep = {
        k: {d: (rerank_within(first.rankings[d], scores, k, margin) if k > 1 else first.rankings[d]).best_ranks() for d in DIRECTIONS}
        for k in sweep_sizes(top_k)
    }
    needed = needed_lists([first.rankings[d] for d in DIRECTIONS], top_k, margin)
    margin_shown = margin if np.isfinite(margin) else None
    cost = reranking_cost(first, needed, [], scores, seconds) | {"top_k": top_k, "skip_margin": margin_shown}
    return Stage(stage_names.adaptive(reranked), rankings, cost, first.name, top_k, sweep)


def tuned_stages(tuned: Sequence[TuningResult], stages: Sequence[Stage], scores: PairScores) -> list[Stage]:
    """The stages of every choice on the split that is measured, whose first and reranked stages are among `stages`.

    Raises:
        KeyError: a stage that was tuned is not.
        UserError, LookupError: see `TuningResult.stages`.
    """
    named = {stage.name: stage for stage in stages}
    return [stage for each in tuned for stage in each.stages(named[each.first.name], scores, named[each.stage])]

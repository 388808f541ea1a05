"""Reranked stages of an evaluation, all of one scoring: by pair score, score interpolation, and adaptive (not every candidate scored)."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import SettingError
from eval.execution import ONE_PROCESS, Execution
from eval.metrics.k_sweep import sweep_sizes
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from eval.search.stage import Stage
from rerank import stage_names
from rerank.reorder.fusion import Fusion, FusionChoice, choose_weight
from rerank.reorder.plan import Tuning
from rerank.reorder.reorder import best_ranks_by_size, rerank
from rerank.reorder.skipping import choose_margin, needed_lists, rerank_within
from rerank.scorers.scorer import PairScorer
from rerank.scoring.candidates import CandidateLists, candidate_lists
from rerank.scoring.pair_scores import PairScores, complete_scores
from rerank.scoring.score_cache import ScoreCache


def check_top_k(dataset: RetrievalSet, top_k: int) -> None:
    """Refuse more candidates than there are.

    Raises:
        SettingError: top_k exceeds the number of images or of captions.
    """
    for noun, number in (("images", dataset.num_images), ("captions", dataset.num_captions)):
        if top_k > number:
            split = dataset.source if dataset.split is None else f"split {dataset.split!r}"
            found = f"found {top_k}, and {split} has only {number} {noun}"
            raise SettingError("top_k", f"expected no more candidates than there are; {found}. Give {number} or less")


def score_stages(
    dataset: RetrievalSet,
    stages: Sequence[Stage],
    scorer: PairScorer,
    top_k: int,
    *,
    skip_margin: float | None = None,
    cache: ScoreCache | None = None,
    execution: Execution = ONE_PROCESS,
    show_progress: bool = True,
) -> PairScores:
    """The scores of every pair that some stage needs, in one scoring: each image is encoded once and each pair scored once, whoever asks.

    Args:
        skip_margin: candidates that trail by it are not needed; None: all are.
        cache: scores that earlier runs wrote, and where those of this one are written.
        execution: its on_progress is called after each image of this process's with the number of its pairs.

    Raises:
        UserError: top_k exceeds the gallery, a picture does not decode, or a score is not finite.
        WriteError: a score could not be written to the cache.
    """
    check_top_k(dataset, top_k)
    rankings = [stage.rankings[direction] for stage in stages for direction in DIRECTIONS]
    lists = candidate_lists(rankings, top_k) if skip_margin is None else needed_lists(rankings, top_k, skip_margin)
    return complete_scores(scorer, dataset, lists, cache=cache, execution=execution, progress=show_progress and execution.processes.is_main)


def reranked(stages: Sequence[Stage], scores: PairScores, scorer_name: str, top_k: int) -> list[Stage]:
    """The reranked variant of every stage: its top_k of both directions re-ordered by the given scores.

    Its `cost` is what it would have taken without the others: `pairs_needed` is the number of its pairs, of which `pairs_scored` were
    scored in this run, `pairs_kept` read from the cache, and `pairs_shared` are needed by another stage too; `rerank_seconds`
    is the scoring's in proportion to its share of the pairs scored, and the re-ordering's. So the stages' seconds add up to more than the
    clock's where they share pairs.

    Raises:
        UserError: top_k is deeper than what a stage retrieved.
        LookupError: the scores lack a pair.
    """
    lists = [candidate_lists(stage.rankings.values(), top_k) for stage in stages]
    variants = []
    for number, (stage, own) in enumerate(zip(stages, lists, strict=True)):
        started = time.perf_counter()
        rankings = {direction: rerank(stage.rankings[direction], scores, top_k) for direction in DIRECTIONS}
        seconds = time.perf_counter() - started
        ranks = {direction: best_ranks_by_size(stage.rankings[direction], scores, top_k) for direction in DIRECTIONS}
        sweep = {k: {direction: ranks[direction][k - 1] for direction in DIRECTIONS} for k in range(1, top_k + 1)}
        cost = _cost(stage, own, lists[:number] + lists[number + 1 :], scores, seconds) | {"top_k": top_k}
        variants.append(Stage(stage_names.reranked(stage.name, scorer_name), rankings, cost, stage.name, top_k, sweep))
    return variants


def _cost(
    stage: Stage, own: CandidateLists, others: Sequence[CandidateLists], scores: PairScores, reordering_seconds: float
) -> dict[str, Any]:
    """What re-ordering with the pairs of `own` took, added to what the first stage took; `others`: the pairs other stages need."""
    scored, alone = own.difference(scores.cached), own
    for other in others:
        alone = alone.difference(other)
    share = scored.num_pairs / max(1, scores.cost.pairs_scored)
    rerank_seconds = scores.cost.seconds * share + reordering_seconds
    return dict(stage.cost) | {
        "seconds": float(stage.cost.get("seconds", 0.0)) + rerank_seconds,
        "rerank_seconds": rerank_seconds,
        "pairs_needed": own.num_pairs,
        "pairs_scored": scored.num_pairs,
        "pairs_kept": own.num_pairs - scored.num_pairs,
        "pairs_shared": own.num_pairs - alone.num_pairs,
        "images_encoded": scored.num_images,
    }


def reranked_stages(
    dataset: RetrievalSet,
    stages: Sequence[Stage],
    scorer: PairScorer,
    top_k: int,
    *,
    cache: ScoreCache | None = None,
    execution: Execution = ONE_PROCESS,
    show_progress: bool = True,
) -> list[Stage]:
    """`score_stages`, whose arguments and errors these are, then `reranked`."""
    scores = score_stages(dataset, stages, scorer, top_k, cache=cache, execution=execution, show_progress=show_progress)
    return reranked(stages, scores, scorer.name, top_k)


def adaptive_stage(reranked: str, first: Stage, scores: PairScores, margin: float, top_k: int) -> Stage:
    """The adaptive variant of the stage named `reranked`; of `scores` only the pairs of `rerank.reorder.skipping.needed_lists` are needed.

    Its cost is what it takes without other stages (see `reranked`).

    Raises:
        UserError, LookupError: top_k or margin cannot be used, or a pair was not scored.
    """
    started = time.perf_counter()
    rankings = {d: rerank_within(first.rankings[d], scores, top_k, margin) for d in DIRECTIONS}
    seconds = time.perf_counter() - started
    sweep = _sweep(first, top_k, lambda ranking, k: rerank_within(ranking, scores, k, margin) if k > 1 else ranking)
    cost = _cost(first, needed_lists(list(first.rankings.values()), top_k, margin), [], scores, seconds)
    cost |= {"top_k": top_k, "skip_margin": margin if np.isfinite(margin) else None}
    return Stage(stage_names.adaptive(reranked), rankings, cost, first.name, top_k, sweep)


def _sweep(first: Stage, top_k: int, rank: Callable[[Ranking, int], Ranking]) -> dict[int, dict[Direction, np.ndarray]]:
    return {k: {d: rank(first.rankings[d], k).best_ranks() for d in DIRECTIONS} for k in sweep_sizes(top_k)}


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

    def stages(self, first: Stage, scores: PairScores, cost: Mapping[str, Any]) -> list[Stage]:
        """The tuned stages on the split that is measured.

        Args:
            first: the first stage there.
            scores: of its pairs.
            cost: of the reranked stage there; an interpolated one costs the same.

        Raises:
            UserError, LookupError: a pair was not scored.
        """
        made = []
        if self.fusion is not None:
            equal = replace(self.fusion.fusion, weight=1.0)
            for name, fusion in ((stage_names.summed(self.stage), equal), (stage_names.fused(self.stage), self.fusion.fusion)):
                made.append(self._interpolated(name, fusion, first, scores, cost))
        if self.margin is not None:
            made.append(adaptive_stage(self.stage, first, scores, self.margin, self.top_k))
        return made

    def _interpolated(self, name: str, fusion: Fusion, first: Stage, scores: PairScores, cost: Mapping[str, Any]) -> Stage:
        rankings = {d: fusion.rank(first.rankings[d], scores, self.top_k) for d in DIRECTIONS}
        sweep = _sweep(first, self.top_k, lambda ranking, k: fusion.rank(ranking, scores, k))
        return Stage(name, rankings, dict(cost) | {"weight": fusion.weight}, first.name, self.top_k, sweep)

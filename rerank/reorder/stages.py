"""Reranked stages of an evaluation: for each first stage its reranked variant, all of them sharing one scoring."""

import time
from collections.abc import Sequence
from typing import Any

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.execution import ONE_PROCESS, Execution
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank import stage_names
from rerank.reorder.reorder import best_ranks_by_size, rerank
from rerank.scorers.scorer import PairScorer
from rerank.scoring.candidates import CandidateLists, candidate_lists
from rerank.scoring.pair_scores import PairScores, complete_scores
from rerank.scoring.score_cache import ScoreCache


def check_top_k(dataset: RetrievalSet, top_k: int) -> None:
    """Refuse more candidates than there are.

    Raises:
        UserError: top_k exceeds the number of images or of captions.
    """
    for noun, number in (("images", dataset.num_images), ("captions", dataset.num_captions)):
        if top_k > number:
            raise UserError(f"rerank top_k is {top_k}, but split {dataset.split!r} has only {number} {noun}; give top_k <= {number}")


def stage_lists(stage: Stage, top_k: int) -> CandidateLists:
    """The pairs that re-ordering the first `top_k` of every query of a stage needs, of both directions, as one list per image.

    Raises:
        UserError: top_k is deeper than what the stage retrieved.
    """
    return candidate_lists([stage.rankings[direction] for direction in DIRECTIONS], top_k)


def score_stages(
    dataset: RetrievalSet,
    stages: Sequence[Stage],
    scorer: PairScorer,
    top_k: int,
    *,
    cache: ScoreCache | None = None,
    execution: Execution = ONE_PROCESS,
    show_progress: bool = True,
) -> PairScores:
    """The scores of every pair that some stage needs, in one scoring: each image is encoded once and each pair scored once, whoever asks.

    Args:
        cache: scores that earlier runs wrote, and where those of this one are written.
        execution: its on_progress is called after each image of this process's with the number of its pairs.

    Raises:
        UserError: top_k exceeds the gallery, a picture does not decode, or a score is not finite.
        WriteError: a score could not be written to the cache.
    """
    check_top_k(dataset, top_k)
    first, *others = [stage_lists(stage, top_k) for stage in stages]
    progress = show_progress and execution.processes.is_main
    return complete_scores(scorer, dataset, first.union(*others), cache=cache, execution=execution, progress=progress)


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
    lists = [stage_lists(stage, top_k) for stage in stages]
    variants = []
    for number, (stage, own) in enumerate(zip(stages, lists, strict=True)):
        started = time.perf_counter()
        rankings = {direction: rerank(stage.rankings[direction], scores, top_k) for direction in DIRECTIONS}
        seconds = time.perf_counter() - started
        ranks = {direction: best_ranks_by_size(stage.rankings[direction], scores, top_k) for direction in DIRECTIONS}
        sweep = {k: {direction: ranks[direction][k - 1] for direction in DIRECTIONS} for k in range(1, top_k + 1)}
        cost = reranking_cost(stage, own, lists[:number] + lists[number + 1 :], scores, seconds) | {"top_k": top_k}
        variants.append(Stage(stage_names.reranked(stage.name, scorer_name), rankings, cost, stage.name, top_k, sweep))
    return variants


def reranking_cost(
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
    """`score_stages`, then `reranked`.

    Raises:
        UserError: top_k exceeds the gallery, a picture does not decode, or a score is not finite.
    """
    scores = score_stages(dataset, stages, scorer, top_k, cache=cache, execution=execution, show_progress=show_progress)
    return reranked(stages, scores, scorer.name, top_k)

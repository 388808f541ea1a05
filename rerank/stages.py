"""Reranked arms of an evaluation: for each first stage its reranked twin, all of them sharing one set of pair scores."""

import time
from collections.abc import Sequence

from eval.dataset import RetrievalSet
from eval.errors import UserError
from eval.evaluator import Stage
from eval.processes import Processes
from eval.ranking import DIRECTIONS
from eval.sweep import sweep_sizes
from rerank.candidates import candidate_lists
from rerank.pairs import PairScores, complete_scores
from rerank.reranking import rerank
from rerank.scorer import PairScorer


def check_top_k(dataset: RetrievalSet, top_k: int) -> None:
    """Refuse more candidates than there are.

    Raises:
        UserError: top_k exceeds the number of images or of captions.
    """
    for noun, number in (("images", dataset.num_images), ("captions", dataset.num_captions)):
        if top_k > number:
            raise UserError(f"rerank top_k is {top_k}, but split {dataset.split!r} has only {number} {noun}; give top_k <= {number}")


def reranked_stages(
    dataset: RetrievalSet,
    stages: Sequence[Stage],
    scorer: PairScorer,
    top_k: int,
    *,
    processes: Processes = Processes(),
    show_progress: bool = True,
) -> list[Stage]:
    """The twin `NAME+SCORER` of every stage: its top_k of both directions re-ordered by the scorer.

    Each image goes through the scorer's vision tower once per stage that brings new pairs, each pair is scored once in all. The cost of a
    twin is its first stage's and what it needed itself; pairs another stage had paid for already are counted as `pairs_shared`.

    Raises:
        UserError: top_k exceeds the gallery, a picture does not decode, or a score is not finite.
    """
    check_top_k(dataset, top_k)
    known: PairScores | None = None
    twins = []
    for stage in stages:
        lists = candidate_lists([stage.rankings[direction] for direction in DIRECTIONS], top_k)
        shared = 0 if known is None else lists.num_pairs - lists.difference(known.lists).num_pairs
        before = (known.cost.pairs_scored, known.cost.seconds, known.cost.images_encoded) if known is not None else (0, 0.0, 0)
        known = complete_scores(scorer, dataset, lists, known=known, processes=processes, progress=show_progress and processes.is_main)
        started = time.perf_counter()
        rankings = {direction: rerank(stage.rankings[direction], known, top_k) for direction in DIRECTIONS}
        scoring_seconds = known.cost.seconds - before[1] + time.perf_counter() - started
        sweep = {k: {d: rerank(stage.rankings[d], known, k).best_ranks() for d in DIRECTIONS} for k in sweep_sizes(top_k)}
        cost = dict(stage.cost) | {
            "seconds": float(stage.cost.get("seconds", 0.0)) + scoring_seconds,
            "rerank_seconds": scoring_seconds,
            "pairs_scored": known.cost.pairs_scored - before[0],
            "pairs_shared": shared,
            "images_encoded": known.cost.images_encoded - before[2],
            "top_k": top_k,
        }
        twins.append(Stage(f"{stage.name}+{scorer.name}", rankings, cost, stage.name, top_k, sweep))
    return twins

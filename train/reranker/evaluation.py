"""The retriever's top-K reranked by a cross-encoder: on val between steps, on test at the end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import values_of
from eval.search.retrieve import retrieve
from eval.search.stage import Stage
from rerank.reorder.stages import reranked, score_stages
from rerank.scorers.blip.scorer import BlipScorer
from train.reranker.job import RerankerJob

RETRIEVER = "miner"
"""The first stage in names of stages."""


def first_stage(job: RerankerJob, dataset: RetrievalSet, on_progress: Callable[[int], Any]) -> Stage:
    """The retrieval of a split by the model that mines, deep enough to be reranked. Call on every process."""
    model, inputs = job.retriever.siglip, job.retriever.inputs
    model.to(job.accelerator.device)  # type: ignore[arg-type]  # transformers wraps it
    depth, execution = job.config.evaluation.top_k, job.execution(on_progress)
    stage = retrieve(RETRIEVER, model, inputs, dataset, depth=depth, execution=execution, cached=True)
    model.to("cpu")  # type: ignore[arg-type]
    return stage


@dataclass(frozen=True)
class RerankerFigures:
    """What a cross-encoder makes of the retriever's top-K.

    Attributes:
        values: each metric of each direction.
        score_std: standard deviation of the match logits of all pairs scored.
        seconds: of the scoring.
    """

    values: dict[Any, dict[str, float]]
    score_std: float
    seconds: float


def measure_cross_encoder(job: RerankerJob, dataset: RetrievalSet, stage: Stage, on_scored: Callable[[int], Any]) -> RerankerFigures:
    """Rerank a first stage with the cross-encoder as it is now, in float32 as at the end. Call on every process.

    Args:
        on_scored: called with each number of pairs scored on this process.
    """
    device, top_k = job.accelerator.device, job.config.evaluation.top_k
    scorer = BlipScorer(job.tuned.plain(device), device=device)
    scores = score_stages(dataset, [stage], scorer, top_k, execution=job.execution(on_scored), show_progress=False)
    (found,) = reranked([stage], scores, scorer.name, top_k)
    values = values_of(dataset, replace(found, first_stage=None, top_k=None, sweep={}))
    return RerankerFigures(values, float(scores.scores_N.astype(np.float64).std()), found.cost["rerank_seconds"])

"""The retriever's top-K reranked by a cross-encoder: on val between steps, on test at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from eval.dataset.retrieval_set import RetrievalSet
from eval.execution import Execution
from eval.metrics.evaluate import values_of
from eval.metrics.stage_metrics import mean_recall_at_1
from eval.processes import Processes
from eval.search.retrieve import retrieve
from eval.search.stage import Stage
from rerank.reorder.stages import reranked_stages
from rerank.scorers.blip.scorer import BlipScorer
from rerank.scorers.scorer import PairScorer
from train.reranker.job import RerankerJob

RETRIEVER = "miner"
"""The first stage in names of stages."""


class NamedScorer:
    """A scorer under another name, which reports progress and remembers its scores (a `PairScorer`).

    Attributes:
        name: what the stage is called after it.
        scores: of this process, one array for each image.
    """

    def __init__(self, scorer: PairScorer, name: str, on_scored: Callable[[int], Any] = lambda pairs: None) -> None:
        """on_scored: called with each number of pairs scored."""
        self.name, self.reads = name, scorer.reads
        self._scorer, self._on_scored = scorer, on_scored
        self.scores: list[np.ndarray] = []

    @property
    def fingerprint(self) -> str:
        """The scorer's own."""
        return self._scorer.fingerprint

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """The scorer's own scores."""
        scores_N = self._scorer.score(image, captions)
        self.scores.append(scores_N)
        self._on_scored(len(captions))
        return scores_N


def first_stage(job: RerankerJob, dataset: RetrievalSet, on_progress: Callable[[int], Any]) -> Stage:
    """The retrieval of a split by the model that mines, deep enough to be reranked. Call on every process."""
    model, inputs = job.retriever.siglip, job.retriever.inputs
    model.to(job.accelerator.device)  # type: ignore[arg-type]  # transformers wraps it
    stage = retrieve(RETRIEVER, model, inputs, dataset, depth=job.config.evaluation.top_k, execution=job.execution(on_progress))
    model.to("cpu")  # type: ignore[arg-type]
    return stage


@dataclass(frozen=True)
class RerankerFigures:
    """What a cross-encoder makes of the retriever's top-K.

    Attributes:
        values: each metric of each direction.
        score: mean R@1 of both.
        score_std: standard deviation of the match logits of all pairs scored.
        seconds: of the scoring.
    """

    values: dict[Any, dict[str, float]]
    score: float
    score_std: float
    seconds: float


def measure_cross_encoder(job: RerankerJob, dataset: RetrievalSet, stage: Stage, on_scored: Callable[[int], Any]) -> RerankerFigures:
    """Rerank a first stage with the cross-encoder as it is now, in float32 as at the end. Call on every process.

    Args:
        on_scored: called with each number of pairs scored on this process.
    """
    device = job.accelerator.device
    scorer = NamedScorer(BlipScorer(job.tuned.plain(device), device=device), "blip", on_scored)
    top_k = job.config.evaluation.top_k
    execution = Execution(processes=job.processes)
    (reranked,) = reranked_stages(dataset, [stage], scorer, top_k, execution=execution, show_progress=False)
    values = values_of(dataset, replace(reranked, first_stage=None, top_k=None, sweep={}))
    return RerankerFigures(values, mean_recall_at_1(values), score_std(scorer.scores, job.processes), reranked.cost["rerank_seconds"])


def score_std(scores: Sequence[np.ndarray], processes: Processes) -> float:
    """Standard deviation of all scores of all processes, from sums in float64."""
    scores_N = np.concatenate([np.empty(0), *scores]).astype(np.float64)
    num, total = np.concatenate(processes.gather(np.array([[len(scores_N), scores_N.sum()]]))).sum(axis=0)
    squares = np.concatenate(processes.gather(np.array([np.square(scores_N - total / num).sum()]))).sum()
    return float(np.sqrt(squares / num))

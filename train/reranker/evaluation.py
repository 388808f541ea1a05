"""The miner's top-K reranked by a matcher: on val between steps, on test at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import values_of
from eval.metrics.stage_metrics import mean_recall_at_1
from eval.processes import Processes
from eval.search.retrieve import retrieve
from eval.search.stage import Stage
from rerank.reorder.stages import reranked_stages
from rerank.scorers.blip.scorer import BlipScorer
from rerank.scorers.scorer import InputLimits, PairScorer
from train.reranker.job import RerankerJob


class NamedScorer:
    """A scorer under another name, which tells how far it is and what it said (a `PairScorer`).

    Attributes:
        said: scores of this process, one array for each image.
    """

    def __init__(self, scorer: PairScorer, name: str, on_scored: Callable[[int], Any] = lambda pairs: None) -> None:
        """on_scored: called with each number of pairs scored."""
        self._scorer, self._name, self._on_scored = scorer, name, on_scored
        self.said: list[np.ndarray] = []

    @property
    def name(self) -> str:
        """What the stage is called after it."""
        return self._name

    @property
    def fingerprint(self) -> str:
        """The scorer's own."""
        return self._scorer.fingerprint

    @property
    def reads(self) -> InputLimits:
        """The scorer's own."""
        return self._scorer.reads

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """The scorer's own scores."""
        scores_N = self._scorer.score(image, captions)
        self.said.append(scores_N)
        self._on_scored(len(captions))
        return scores_N


def first_stage(job: RerankerJob, dataset: RetrievalSet, on_progress: Callable[[int], Any]) -> Stage:
    """The miner's own retrieval of a split, kept deep enough to be reranked. Call on every process."""
    model, inputs = job.retriever.siglip, job.retriever.inputs
    model.to(job.accelerator.device)  # type: ignore[arg-type]  # transformers wraps it
    stage = retrieve("miner", model, inputs, dataset, depth=job.config.evaluation.top_k, execution=job.execution(on_progress))
    model.to("cpu")  # type: ignore[arg-type]
    return stage


@dataclass(frozen=True)
class RerankerFigures:
    """What a matcher makes of the miner's top-K.

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
    """Rerank a first stage with the matcher as it stands, in float32 as at the end. Call on every process.

    Args:
        on_scored: called with each number of pairs scored on this process.
    """
    device = job.accelerator.device
    scorer = NamedScorer(BlipScorer(job.tuned.plain(device), device=device, settings=job.tuned.inputs.settings), "blip", on_scored)
    top_k = job.config.evaluation.top_k
    (twin,) = reranked_stages(dataset, [stage], scorer, top_k, processes=job.processes, show_progress=False)
    values = values_of(dataset, replace(twin, first_stage=None, top_k=None, sweep={}))
    return RerankerFigures(values, mean_recall_at_1(values), score_std(scorer.said, job.processes), twin.cost["rerank_seconds"])


def score_std(said: Sequence[np.ndarray], processes: Processes) -> float:
    """Standard deviation of all scores of all processes, from sums in float64."""
    scores_N = np.concatenate([np.empty(0), *said]).astype(np.float64)
    num, total = np.concatenate(processes.gather(np.array([[len(scores_N), scores_N.sum()]]))).sum(axis=0)
    squares = np.concatenate(processes.gather(np.array([np.square(scores_N - total / num).sum()]))).sum()
    return float(np.sqrt(squares / num))

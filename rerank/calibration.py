"""The calibration of an evaluation's own checkpoint, alone and reranked: fitted on one split, looked at on the split that is measured.

Only scores that `python -m rerank` gives are calibrated: the first stage's cosine and the cross-encoder's score. Stages of several
checkpoints, of additional views or of interpolated scores are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.execution import Execution
from eval.metrics.calibration import NUM_RESAMPLES, CandidatePairs, calibrate, check_calibration
from eval.metrics.significance import resample_weights
from eval.report.calibration import CALIBRATION, VERSION
from eval.report.section import Section
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank.reorder.reranking import Reranked
from rerank.reorder.stages import reranked, score_stages
from rerank.scorers.scorer import PairScorer, ScoreKind
from rerank.scoring.pair_scores import PairScores
from rerank.scoring.score_cache import ScoreCache

DEFAULT_TOP_K = 32
"""Candidates of each query where nothing is reranked; where there are fewer, all."""


@dataclass(frozen=True)
class Reranker:
    """A cross-encoder, the cache of its scores, if there is one, the folder or hub id it was loaded from, if that is known, and what its
    score is."""

    scorer: PairScorer
    cache: ScoreCache | None = None
    model: str | None = None
    score_kind: ScoreKind = "match_logit"


@dataclass(frozen=True)
class StagesOf:
    """The calibrated checkpoint on a split: its first stage and, where there is a cross-encoder, that reranked."""

    dataset: RetrievalSet
    stages: list[Stage]

    @classmethod
    def scored(
        cls, dataset: RetrievalSet, first: Stage, reranker: Reranker | None, top_k: int, known: PairScores | None, execution: Execution
    ) -> "StagesOf":
        """Rerank a first stage; call on every process.

        Args:
            known: the scores of its candidates, where they are known already.

        Raises:
            UserError: a picture does not decode, or a score is not finite.
        """
        if reranker is None:
            return cls(dataset, [first])
        scores = known
        if scores is None:
            scores = score_stages(dataset, [first], reranker.scorer, top_k, cache=reranker.cache, execution=execution)
        return cls(dataset, [first, *reranked([first], scores, reranker.scorer.name, top_k)])

    def pairs(self, number: int, top_k: int) -> dict[str, CandidatePairs]:
        """The candidates of a stage, by direction."""
        images, captions, rankings = np.arange(self.dataset.num_images), self.dataset.caption_image_C, self.stages[number].rankings
        sides = {"image_to_text": (images, captions), "text_to_image": (captions, images)}
        return {d: CandidatePairs.of(rankings[d], top_k, *sides[d]) for d in DIRECTIONS}


def known_scores(found: Reranked | None, name: str, fitted_on: RetrievalSet) -> tuple[Stage | None, PairScores | None]:
    """The first stage of a split and the scores of its candidates, where something was tuned there already."""
    for one in found.tuned if found is not None else ():
        if one.dataset is fitted_on and one.first.name == name:
            return one.first, one.scores
    return None, None


def candidates_of(datasets: Sequence[RetrievalSet], asked: int | None) -> int:
    """How many candidates of each query are looked at: as many as are reranked, or DEFAULT_TOP_K; all where there are fewer."""
    sizes = [size for one in datasets for size in (one.num_images, one.num_captions)]
    return min(asked if asked is not None else DEFAULT_TOP_K, *sizes)


def calibration_section(fitted: StagesOf, measured: StagesOf, top_k: int, reranker: Reranker | None, model: str) -> Section:
    """The section of a report; on one process.

    Args:
        model: folder or hub id of the checkpoint.

    Raises:
        UserError: the model is not there any more.
    """
    weights_SI, measured_SI = (resample_weights(one.dataset.num_images, num_resamples=NUM_RESAMPLES) for one in (fitted, measured))
    stages: dict[str, Any] = {}
    checked: dict[str, Any] = {}
    for number, stage in enumerate(fitted.stages):
        is_first = number == 0 or reranker is None
        score = "cosine" if is_first else reranker.score_kind if reranker is not None else ""
        own, other = fitted.pairs(number, top_k), measured.pairs(number, top_k)
        found = {d: {"score": score} | calibrate(own[d], weights_SI) for d in DIRECTIONS}
        fingerprint = None if is_first or reranker is None else reranker.scorer.fingerprint
        stages[stage.name] = {"reranker": fingerprint, "top_k": top_k, **found}
        checked[stage.name] = {d: check_calibration(found[d], other[d], measured_SI) for d in DIRECTIONS}
    record = {
        "version": VERSION,
        "model": hash_weights(load_siglip(model)[0]),
        "fitted_on": _split(fitted.dataset),
        "stages": stages,
        "measured": _split(measured.dataset) | {"is_fitted": fitted.dataset.sha256() == measured.dataset.sha256(), "stages": checked},
    }
    return Section(CALIBRATION, record)


def _split(dataset: RetrievalSet) -> dict[str, Any]:
    return {"split": dataset.split, "images": dataset.num_images, "captions": dataset.num_captions, "sha256": dataset.sha256()}


def calibration_file(record: Mapping[str, Any]) -> dict[str, Any]:
    """What calibration.json holds of a report's record: all but what was measured."""
    return {key: value for key, value in record.items() if key != "measured"}

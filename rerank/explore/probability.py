"""How likely a score is a match: export/calibration.json, for the two stages that the page shows."""

from dataclasses import dataclass

import numpy as np

from eval.encoder.hub import model_folder
from eval.errors import UserError
from eval.report.calibration import FILE, HOW, Calibration, StageCalibration
from eval.search.ranking import Direction


@dataclass(frozen=True)
class StageProbability:
    """The calibration of one stage.

    Attributes:
        remark: what it was fitted on; or why there is none, and what to do.
        stage: None: not calibrated.
    """

    remark: str
    stage: StageCalibration | None = None

    def of(self, direction: Direction, scores: np.ndarray) -> np.ndarray | None:
        """Probability of a match of each score, float64 of the same shape; None: not calibrated."""
        return None if self.stage is None else self.stage.probability(direction, scores)


def stage_probabilities(model: str, weights_sha256: str, reranker: str | None) -> tuple[StageProbability, StageProbability]:
    """The calibrations of the first stage and of the reranked one.

    Args:
        model: a folder, or a model of the hub; its calibration.json is read where it has one.
        weights_sha256: of the model (`eval.encoder.checkpoint.hash_weights`).
        reranker: fingerprint of the cross-encoder, if there is one.

    Raises:
        UserError: the file is there and is no calibration.
    """
    path = model_folder(model) / FILE
    if not path.is_file():
        none = StageProbability(f"not calibrated: {model} has no {FILE}. {HOW}; put it into the model's folder")
        return none, none
    calibration = Calibration.read(path)

    def found(fingerprint: str | None) -> StageProbability:
        try:
            stage = calibration.stage(weights_sha256, fingerprint)
        except UserError as error:
            return StageProbability(f"not calibrated: {error}")
        split = calibration.record["fitted_on"]["split"] or "all rows"
        return StageProbability(f"fitted on {split}, the first {stage.top_k} answers to each query", stage)

    return found(None), found(reranker)

"""Which answers are matches: the probability of each, and only those whose score reaches a wanted precision."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.encoder.hub import model_folder
from eval.errors import UserError
from eval.report.calibration import FILE, HOW, Calibration, StageCalibration
from eval.search.ranking import Direction
from rerank.answers.answers import Answers
from rerank.scorers.scorer import PairScorer


@dataclass(frozen=True)
class Matches:
    """How answers are calibrated.

    Attributes:
        path: of the calibration.
        stage: what the scores that order the answers mean.
        precision: the share of the answers that is to be relevant; None: every answer stays.
    """

    path: str
    stage: StageCalibration
    precision: float | None

    @classmethod
    def read(cls, path: str | None, model: str, weights_sha256: str, scorer: PairScorer | None, precision: float | None) -> "Matches":
        """The calibration of a model and its reranker.

        Args:
            path: of the file; None: calibration.json of the model's folder.

        Raises:
            UserError: there is none, or it is of another model or reranker.
        """
        if path is None:
            own = Path(model_folder(model)) / FILE
            if not own.is_file():
                raise UserError(f"--min-precision needs a calibration of {model}, and it has no {FILE}. {HOW}; then --calibration FILE")
            path = str(own)
        stage = Calibration.read(path).stage(weights_sha256, scorer.fingerprint if scorer is not None else None)
        return cls(path, stage, precision)

    def check(self, directions: Sequence[Direction]) -> None:
        """Refuse a precision that no score reaches.

        Raises:
            SettingError: naming the direction.
        """
        for direction in directions:
            if self.precision is not None:
                self.stage.threshold(direction, self.precision)

    def of(self, answers: Answers) -> Answers:
        """The answers with their probabilities, and how many of each query's are matches: its first ones, as they are in their order."""
        scores_QK = answers.cosines_QK if answers.rerank_scores_QK is None else answers.rerank_scores_QK
        probabilities_QK = self.stage.probability(answers.direction, scores_QK).astype(np.float32)
        num_matches_Q = None
        if self.precision is not None:
            above_QK = scores_QK.astype(np.float64) >= self.stage.threshold(answers.direction, self.precision)
            num_matches_Q = np.count_nonzero(above_QK, axis=1)
        return replace(answers, probabilities_QK=probabilities_QK, num_matches_Q=num_matches_Q)

    def lines(self, top_k: int) -> list[str]:
        """What a person should know before."""
        if top_k == self.stage.top_k:
            return []
        return [f"note       calibrated on the first {self.stage.top_k} answers to each query, and --top-k is {top_k}"]

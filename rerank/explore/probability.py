"""How likely a score is a match: export/calibration.json, read for the two stages that the page shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.encoder.hub import model_folder
from eval.errors import UserError
from eval.files import CONFIG_BYTES, read_text
from eval.search.ranking import DIRECTIONS, Direction

FILE, VERSION = "calibration.json", 1
_REMEDY = "./launch.sh eval --calibrate-on SPLIT writes one; put it into the model's folder"


@dataclass(frozen=True)
class StageProbability:
    """The calibration of one stage.

    Attributes:
        remark: what it was fitted on; or why there is none, and what to do.
        points: of each direction, float64 of shape (points, 2): score and probability, both ascending; empty: not calibrated.
    """

    remark: str
    points: Mapping[Direction, np.ndarray] = field(default_factory=dict)

    def of(self, direction: Direction, scores: np.ndarray) -> np.ndarray | None:
        """Probability of a match of each score, float64 of the same shape: linear between points, clamped outside; None: not calibrated."""
        table = self.points.get(direction)
        return None if table is None else np.interp(scores, table[:, 0], table[:, 1])


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
        none = StageProbability(f"not calibrated: {model} has no {FILE}. {_REMEDY}")
        return none, none
    record = _read(path)
    if record["model"] != weights_sha256:
        other = StageProbability(f"not calibrated: {path} was fitted on other weights. {_REMEDY}")
        return other, other
    return _stage(record, None, path), _stage(record, reranker, path)


def _stage(record: Mapping[str, Any], reranker: str | None, path: Path) -> StageProbability:
    for stage in record["stages"].values():
        if stage["reranker"] == reranker:
            points = {direction: np.asarray(stage[direction]["points"], dtype=np.float64) for direction in DIRECTIONS}
            return StageProbability(f"fitted on {record['fitted_on']['split'] or 'all rows'}", points)
    what = "this reranker" if reranker is not None else "the model alone"
    return StageProbability(f"not calibrated: {path} has no stage of {what}. {_REMEDY}")


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(read_text(path, CONFIG_BYTES))
        known = record["version"] == VERSION and "split" in record["fitted_on"] and isinstance(record["model"], str)
        for stage in record["stages"].values():
            for direction in DIRECTIONS:
                table = np.asarray(stage[direction]["points"], dtype=np.float64)
                known &= table.ndim == 2 and table.shape[1] == 2 and bool(np.isfinite(table).all())
            known &= "reranker" in stage
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: could not be read as a calibration ({type(error).__name__}: {error}). {_REMEDY}") from error
    if not known:
        raise UserError(f"{path}: expected a calibration of version {VERSION}. {_REMEDY}")
    return record

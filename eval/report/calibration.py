"""Calibration as a file, calibration.json, and as a section of a report: how likely a candidate of a score is relevant.

{"version": 1, "model": SHA-256 of the weights, "fitted_on": {"split", "images", "captions", "sha256"},
 "stages": {STAGE: {"reranker": null or the fingerprint of its cross-encoder, "top_k": candidates of each query that were looked at,
                    DIRECTION: {"score", "points", "thresholds", ...}}}}

"score" is what `points` and `thresholds` are of: "cosine" (of the first stage), or the cross-encoder's "match_logit" or "margin". Each is
of the pair alone, whatever else the gallery holds. The rest of a direction: eval/metrics/calibration.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import SettingError, UserError
from eval.files import read_text
from eval.metrics.calibration import LEAST_PAIRS, probability_at
from eval.report.render import DIRECTION_WORDS, TEMPLATES
from eval.report.section import SectionFormat
from eval.search.ranking import DIRECTIONS, Direction

FILE = "calibration.json"
VERSION = 1
_BOX = 200
HOW = "python -m eval --model MODEL --data PAIRS --split SPLIT --calibrate-on SPLIT --output FOLDER writes FOLDER/calibration.json"
"""How one is made."""


@dataclass(frozen=True)
class StageCalibration:
    """The calibration of one stage: what a score of it means.

    Attributes:
        name: of the stage.
        top_k: candidates of each query that it was fitted on.
        directions: the record of each.
    """

    name: str
    top_k: int
    directions: Mapping[Direction, Mapping[str, Any]]

    def probability(self, direction: Direction, scores: np.ndarray) -> np.ndarray:
        """The probability that candidates of these scores are relevant, float64 of any shape."""
        return probability_at(self.directions[direction]["points"], scores)

    def threshold(self, direction: Direction, precision: float) -> float:
        """The lowest score at or above which this share of the candidates is relevant.

        Raises:
            SettingError: it was not looked for, or no score reaches it.
        """
        rows = {row["precision"]: row["score"] for row in self.directions[direction]["thresholds"]}
        if precision not in rows:
            known = ", ".join(f"{one:g}" for one in rows)
            raise SettingError("precision", f"expected one of the precisions that were calibrated, {known}; found {precision:g}")
        score = rows[precision]
        if score is None:
            reached = [f"{one:g}" for one, reachable in rows.items() if reachable is not None]
            instead = f"take one of {', '.join(reached)}" if reached else "it reaches none of them: take a better model, or --rerank"
            raise SettingError(
                "precision", f"no score of {self.name}, {DIRECTION_WORDS[direction]}, reaches precision {precision:g}: {instead}"
            )
        return float(score)


@dataclass(frozen=True)
class Calibration:
    """A calibration.json that was read."""

    path: str
    record: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Calibration":
        """Read a file.

        Raises:
            UserError: there is none, or it is no calibration of this version.
        """
        try:
            record = json.loads(read_text(Path(path)))
            known = record["version"] == VERSION and isinstance(record["model"], str) and "split" in record["fitted_on"]
            for stage in record["stages"].values():
                known &= (stage["reranker"] is None or isinstance(stage["reranker"], str)) and isinstance(stage["top_k"], int)
                for direction in DIRECTIONS:
                    table = np.asarray(stage[direction]["points"], dtype=np.float64)
                    known &= table.ndim == 2 and table.shape[1] == 2 and bool(np.isfinite(table).all())
                    known &= all({"precision", "score"} <= set(row) for row in stage[direction]["thresholds"])
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file. {HOW}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: could not be read as a calibration ({type(error).__name__}: {error}). {HOW}") from error
        if not known:
            raise UserError(f"{path}: expected a calibration of version {VERSION}. {HOW}")
        return cls(str(path), record)

    def stage(self, weights_sha256: str, reranker: str | None) -> StageCalibration:
        """The stage of a model and, where there is one, a cross-encoder.

        Args:
            weights_sha256: of the model (`eval.encoder.checkpoint.hash_weights`).
            reranker: its fingerprint.

        Raises:
            UserError: it is of another model, or of no such stage.
        """
        if self.record["model"] != weights_sha256:
            raise UserError(
                f"{self.path} is the calibration of another model (weights {self.record['model'][:16]}, here {weights_sha256[:16]}). {HOW}"
            )
        for name, stage in self.record["stages"].items():
            if stage["reranker"] == reranker:
                return StageCalibration(name, stage["top_k"], {direction: stage[direction] for direction in DIRECTIONS})
        what = "the model alone" if reranker is None else "this cross-encoder, with these settings"
        has = ", ".join(self.record["stages"])
        raise UserError(f"{self.path} has the stages {has}, and none is of {what}. {HOW}, with --rerank MODEL as it is to be used")


def calibration_line(record: Mapping[str, Any]) -> list[str]:
    """A sentence for each stage and direction: the thresholds, and what precision they gave where it was measured."""
    lines = []
    for name, stage in record["stages"].items():
        for direction in DIRECTIONS:
            rows = [row for row in stage[direction]["thresholds"] if row["score"] is not None]
            checked = record["measured"]["stages"].get(name, {}).get(direction, {"thresholds": []})["thresholds"]
            found = {row["precision"]: row["found"] for row in checked if row["found"] is not None}
            parts = [
                f"{100 * row['precision']:g}% relevant from {row['score']:.3g}"
                + (f" ({100 * found[row['precision']]:.1f}% measured)" if row["precision"] in found else "")
                for row in rows
            ]
            said = "; ".join(parts) or "no score reaches a share of 50%"
            lines.append(f"calibration of {name}, {DIRECTION_WORDS[direction]}, on {split_in_words(record)}: {said}")
    return lines


def split_in_words(record: Mapping[str, Any]) -> str:
    """The split a calibration was fitted on."""
    fitted = record["fitted_on"]
    return f"{fitted['split'] or 'all rows'} ({fitted['images']:,} images)"


def drawn_bins(bins: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bins of `eval.metrics.calibration.check_calibration` in a box of 200 x 200: place, the ends of the interval, radius; none of those
    that hold too few pairs to tell."""
    most = max((row["pairs"] for row in bins), default=1)

    def down(share: float) -> float:
        return round(_BOX * (1 - share), 1)

    return [
        {
            "x": round(_BOX * row["said"], 1),
            "y": down(row["relevant"]),
            "ends": [down(end) for end in row["ci95"]],
            "radius": round(2 + 3 * (row["pairs"] / most) ** 0.5, 1),
        }
        for row in bins
        if row["pairs"] >= LEAST_PAIRS
    ]


CALIBRATION = SectionFormat(
    key="calibration",
    title="Calibration",
    template=TEMPLATES / "calibration.html.j2",
    lines=lambda record, data: calibration_line(record),
    names={"split_in_words": split_in_words, "drawn_bins": drawn_bins, "least_pairs": LEAST_PAIRS},
)
"""The calibration of the checkpoint a report is about, with what it says of the split that is measured."""

"""The protocol of every cross-encoder, `PairScorer`, that of those whose pictures are prepared ahead, and the settings that all have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from PIL import Image

ScoreKind = Literal["match_logit", "margin"]
Precision = Literal["float32", "bfloat16"]
SCORING_VERSION = 1  # raised whenever our code changes scores beyond float noise: scores cached before are then not read


@dataclass(frozen=True)
class ScorerSettings:
    """The settings of every scorer.

    Attributes:
        score_kind: "match_logit", the logit of "match", as BLIP and ALBEF rank in published results; "margin", that less the logit of "no
            match", which orders pairs as the match probability does. Both are the same for a scorer with one output.
        precision: "bfloat16" runs the towers in it; the matching head and the scores stay float32.
    """

    score_kind: ScoreKind = "match_logit"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Raises ValueError for a value that is none of the above: it would be taken for another."""
        for name, value, known in (("score_kind", self.score_kind, ScoreKind), ("precision", self.precision, Precision)):
            if value not in get_args(known):
                raise ValueError(f"{name}: expected {' or '.join(map(repr, get_args(known)))}; found {value!r}.")

    def identity(self, **fixed: object) -> dict[str, object]:
        """What changes scores beyond float noise, for a scorer's fingerprint: these settings and what the scorer has `fixed`."""
        settings = {"precision": self.precision, "score_kind": self.score_kind} | fixed
        return dict(sorted(settings.items())) | {"scoring_version": SCORING_VERSION}


Logits = TypeVar("Logits", torch.Tensor, np.ndarray)
MATCH, NO_MATCH = 1, 0  # columns of a head with two outputs


def match_scores(logits_CK: Logits, kind: ScoreKind) -> Logits:
    """Scores, shape (C,), from a head's outputs, shape (C, K): the one output, or of two what `kind` says (see `ScorerSettings`)."""
    if logits_CK.shape[1] == 1:
        return logits_CK[:, 0]
    match_C = logits_CK[:, MATCH]
    return match_C if kind == "match_logit" else match_C - logits_CK[:, NO_MATCH]


@dataclass(frozen=True)
class InputLimits:
    """How much of an image and of a caption a scorer reads.

    Attributes:
        image_height, image_width: pixels that images are resized to; 0 where they keep their own size.
        max_tokens: tokens that captions are cut to, special ones included.
        keeps_aspect: images keep their aspect ratio; height and width are then those of a square image, the shorter side of any other.
    """

    image_height: int
    image_width: int
    max_tokens: int
    keeps_aspect: bool = False

    def __str__(self) -> str:
        """In words: "pictures at 384 x 384 pixels, captions of up to 35 tokens"."""
        if self.keeps_aspect:
            pictures = f"with a shorter side of {self.image_height} pixels"
        else:
            pictures = f"at {self.image_height} x {self.image_width} pixels" if self.image_height else "at their own size"
        return f"pictures {pictures}, captions of up to {self.max_tokens} tokens"


class PairScorer(Protocol):
    """A cross-encoder: reads an image and a caption together and scores how well they match."""

    @property
    def name(self) -> str:
        """Its part of a stage's name: "blip" gives the stage "tuned+blip"."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that changes scores beyond float noise: weights, preprocessing, precision, settings."""

    @property
    def reads(self) -> InputLimits:
        """How much of an image and of a caption it reads."""

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """One score per caption, float32 of shape (len(captions),); higher = better match."""


class StagedScorer(Protocol):
    """A cross-encoder whose `score` is two steps: another process may take the first, and the host need not wait for the second."""

    @property
    def name(self) -> str:
        """As of `PairScorer`."""

    @property
    def num_ahead(self) -> int:
        """Pictures to begin before the scores of the first of them are waited for; 0 where `begin` itself computes."""

    def prepare(self, image: Image.Image) -> Any:
        """What the model reads of an image, in the host's memory: a tensor, or what a process can send. In any process."""

    def begin(self, prepared: Any, captions: Sequence[str]) -> Callable[[], np.ndarray]:
        """Begin to score a prepared image; what is returned waits for what `score` gives."""


def as_staged(scorer: PairScorer) -> StagedScorer:
    """The scorer itself where it has the steps; else its image is what is prepared, and `begin` scores."""
    return scorer if hasattr(scorer, "begin") else _InOne(scorer)  # type: ignore[return-value]


class _InOne:
    """A scorer without the steps."""

    num_ahead = 0

    def __init__(self, scorer: PairScorer) -> None:
        self._scorer, self.name = scorer, scorer.name

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image."""
        return image

    def begin(self, prepared: Image.Image, captions: Sequence[str]) -> Callable[[], np.ndarray]:
        """Its scores, computed here."""
        scores = self._scorer.score(prepared, captions)
        return lambda: scores

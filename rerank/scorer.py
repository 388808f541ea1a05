"""The protocol every cross-encoder stands behind, and the one door through which a checkpoint becomes a scorer."""

import importlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from rerank.guard import check_matcher
from rerank.probes import check_scorer
from rerank.reads import Reads
from rerank.settings import ScorerSettings


class PairScorer(Protocol):
    """Reads an image and a caption together and says how well they match."""

    @property
    def name(self) -> str:
        """What the stage is called after it: "blip" makes the stage "tuned+blip"."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that changes scores beyond float noise: weights, preprocessing, precision, settings."""

    @property
    def reads(self) -> Reads:
        """What of a picture and of a caption it sees."""

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """One score per caption, float32 of shape (len(captions),); higher = better match."""


# Kind of checkpoint (rerank/kinds.py) -> module and class of its scorer; imported when asked for.
_SCORERS = {
    "blip": ("rerank.blip", "BlipScorer"),
    "blip-2": ("rerank.blip2", "Blip2Scorer"),
    "vilt": ("rerank.vilt", "ViltScorer"),
    "bridgetower": ("rerank.bridgetower", "BridgeTowerScorer"),
    "albef": ("rerank.albef", "AlbefScorer"),
    "vlm": ("rerank.vlm", "VlmScorer"),
}


def load_scorer(model: str, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None) -> PairScorer:
    """The scorer of a checkpoint, given as a folder or a hub id, probed before it is believed.

    Args:
        model: a folder in the hub's format, or a hub id, of one of the kinds that rerank/guard.py knows.
        device: where to score; by default a GPU if there is one.
        settings: what can be switched; by default as the original evaluates, in float32.

    Raises:
        UserError: the checkpoint cannot judge (image, caption) pairs (a text-text reranker, a bi-encoder, a captioner, ...),
            lacks weights, cannot be read, or ignores the picture or the caption (see rerank/probes.py); the message says why
            and what to use instead.
    """
    made = read_scorer(model, device=device, settings=settings)
    check_scorer(made, model, (settings or ScorerSettings()).precision)
    return made


def read_scorer(model: str, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None) -> PairScorer:
    """The same without the probes: for a checkpoint that this job has probed already."""
    module, scorer = _SCORERS[check_matcher(model)]
    made: PairScorer = getattr(importlib.import_module(module), scorer).load(model, device=device, settings=settings)
    return made

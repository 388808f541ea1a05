"""The protocol every cross-encoder stands behind, and the one door through which a checkpoint becomes a scorer."""

import importlib

import torch

from rerank.scorers.probes import check_scorer
from rerank.scorers.scorer import PairScorer, ScorerSettings
from rerank.scorers.supported import check_cross_encoder

# Kind of checkpoint (rerank/scorers/supported.py) -> module and class of its scorer; imported when asked for.
_SCORERS = {
    "blip": ("rerank.scorers.blip.scorer", "BlipScorer"),
    "blip-2": ("rerank.scorers.blip2", "Blip2Scorer"),
    "vilt": ("rerank.scorers.vilt", "ViltScorer"),
    "bridgetower": ("rerank.scorers.bridgetower", "BridgeTowerScorer"),
    "albef": ("rerank.scorers.albef.scorer", "AlbefScorer"),
    "vlm": ("rerank.scorers.vlm.scorer", "VlmScorer"),
}


def load_scorer(model: str, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None) -> PairScorer:
    """The scorer of a checkpoint, given as a folder or a hub id, probed before it is believed.

    Args:
        model: a folder in the hub's format, or a hub id, of one of the kinds that rerank/scorers/supported.py knows.
        device: where to score; by default a GPU if there is one.
        settings: what can be switched; by default as the original evaluates, in float32.

    Raises:
        UserError: the checkpoint cannot judge (image, caption) pairs (a text-text reranker, a bi-encoder, a captioner, ...),
            lacks weights, cannot be read, or ignores the picture or the caption (see rerank/scorers/probes.py); the message says why
            and what to use instead.
    """
    made = read_scorer(model, device=device, settings=settings)
    check_scorer(made, model, (settings or ScorerSettings()).precision)
    return made


def read_scorer(model: str, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None) -> PairScorer:
    """The same without the probes: for a checkpoint that this job has probed already."""
    module, scorer = _SCORERS[check_cross_encoder(model)]
    made: PairScorer = getattr(importlib.import_module(module), scorer).load(model, device=device, settings=settings)
    return made

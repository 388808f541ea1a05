"""Load a cross-encoder checkpoint as a `PairScorer`: check its kind, read it, probe it."""

import importlib

import torch

from eval.encoder.model_files import using_files
from eval.errors import SettingError
from eval.process_group import without_bf16
from rerank.scorers.probes import check_scorer
from rerank.scorers.scorer import PairScorer, Precision, ScorerSettings
from rerank.scorers.supported import RERANKER, check_cross_encoder

# Kind of checkpoint (rerank/scorers/supported.py) -> module and class of its scorer; imported when asked for.
_SCORERS = {
    "blip": ("rerank.scorers.blip.scorer", "BlipScorer"),
    "blip-2": ("rerank.scorers.blip2", "Blip2Scorer"),
    "vilt": ("rerank.scorers.vilt", "ViltScorer"),
    "bridgetower": ("rerank.scorers.bridgetower", "BridgeTowerScorer"),
    "albef": ("rerank.scorers.albef.scorer", "AlbefScorer"),
    "vlm": ("rerank.scorers.vlm.scorer", "VlmScorer"),
}


def load_scorer(model: str, *, device: torch.device | str | None = None, settings: ScorerSettings = ScorerSettings()) -> PairScorer:
    """The scorer of a checkpoint, given as a folder or a hub id, probed before use.

    Args:
        model: a folder in the hub's format, or a hub id, of one of the kinds that rerank/scorers/supported.py knows.
        device: where to score; by default a GPU if there is one.
        settings: by default those of the original's evaluation, in float32.

    Raises:
        UserError: the checkpoint cannot score (image, caption) pairs (a text-text reranker, a bi-encoder, a captioner, ...), lacks
            weights, cannot be read, or ignores the image or the caption (see rerank/scorers/probes.py); the message says why and what
            to use instead.
    """
    loaded = read_scorer(model, device=device, settings=settings)
    with using_files(f"{model!r} could not be used to score a pair", RERANKER):
        check_scorer(loaded, model, settings.precision)
    return loaded


def read_scorer(model: str, *, device: torch.device | str | None = None, settings: ScorerSettings = ScorerSettings()) -> PairScorer:
    """`load_scorer` without the probes, for a checkpoint that this job has probed already."""
    check_precision(settings.precision, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    module, scorer = _SCORERS[check_cross_encoder(model)]
    scorer_class = getattr(importlib.import_module(module), scorer)
    with using_files(f"{model!r} could not be used", RERANKER):
        loaded: PairScorer = scorer_class.load(model, device=device, settings=settings)
    return loaded


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that a device would only emulate.

    Raises:
        SettingError: it would; leaving it out, float32 is the remedy.
    """
    if precision == "bfloat16" and (lacking := without_bf16(device)):
        raise SettingError("precision", f"precision bfloat16: {lacking}. Leave it out")

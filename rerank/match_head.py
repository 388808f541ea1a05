"""What a matching head says of a pair, as one score."""

from typing import TypeVar

import numpy as np
import torch

from rerank.settings import ScoreKind

Logits = TypeVar("Logits", torch.Tensor, np.ndarray)
MATCH, NO_MATCH = 1, 0  # columns of a head with two outputs


def match_scores(logits_CK: Logits, kind: ScoreKind) -> Logits:
    """Scores, shape (C,), of a head's outputs, shape (C, K): of one output that output, of two what `kind` says (see `ScorerSettings`)."""
    if logits_CK.shape[1] == 1:
        return logits_CK[:, 0]
    match_C = logits_CK[:, MATCH]
    return match_C if kind == "match_logit" else match_C - logits_CK[:, NO_MATCH]

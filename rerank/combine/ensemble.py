"""Several SigLIP checkpoints as one first stage: the weighted mean of their logits.

A logit is scale x cosine + bias, so the mean of several models' logits is, but for a constant that orders nothing and a factor, a weighted
mean of their cosines, with weights w x scale. And a weighted mean of cosines is itself a cosine: of the members' vectors side by side, each
times the square root of its share. So an ensemble is searched by the same exact search as one model, tile by tile, never as a whole matrix.
"""

from collections.abc import Sequence

from eval.errors import UserError

INPUTS_KEY = "members"


def mean_of_members(scales: Sequence[float], biases: Sequence[float], weights: Sequence[float]) -> tuple[list[float], float, float]:
    """(share of each member, scale, bias) of the mean of logits, which is scale x (sum of share x cosine) + bias; shares sum to 1."""
    total = sum(weights)
    parts = [weight / total * scale for weight, scale in zip(weights, scales, strict=True)]
    scale = sum(parts)
    return [part / scale for part in parts], scale, sum(weight / total * bias for weight, bias in zip(weights, biases, strict=True))


def parse_member(text: str) -> tuple[str, float]:
    """(checkpoint, weight) of DIR_OR_HUB_ID[:WEIGHT]; without one the weight is 1.

    >>> parse_member("google/siglip-large-patch16-256:0.5")
    ('google/siglip-large-patch16-256', 0.5)

    Raises:
        UserError: the weight is not a number above 0.
    """
    path, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not path or not 0 < number < float("inf"):
        raise UserError(f"--ensemble {text}: expected DIR_OR_HUB_ID[:WEIGHT], the weight a number above 0; found {weight!r}")
    return path, number

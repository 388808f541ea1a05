"""Members of an ensemble and their weights: what the weighted mean of several models' logits is."""

from collections.abc import Sequence

INPUTS_KEY = "members"


def mean_of_members(scales: Sequence[float], biases: Sequence[float], weights: Sequence[float]) -> tuple[list[float], float, float]:
    """(share of each member, scale, bias) of the mean of logits, which is scale x (sum of share x cosine) + bias; shares sum to 1.

    >>> mean_of_members([10.0, 30.0], [-5.0, -9.0], [1.0, 1.0])
    ([0.25, 0.75], 20.0, -7.0)
    """
    total = sum(weights)
    parts = [weight / total * scale for weight, scale in zip(weights, scales, strict=True)]
    scale = sum(parts)
    return [part / scale for part in parts], scale, sum(weight / total * bias for weight, bias in zip(weights, biases, strict=True))

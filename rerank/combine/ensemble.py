"""Several SigLIP checkpoints as one first stage: the weighted mean of their logits.

A logit is scale x cosine + bias, so the mean of several models' logits is, but for a constant that orders nothing and a factor, a weighted
mean of their cosines, with weights w x scale. And a weighted mean of cosines is itself a cosine: of the members' vectors side by side, each
times the square root of its share. So an ensemble is searched by the same exact search as one model, tile by tile, never as a whole matrix.

Shape letters: I images, C captions, D width of a member's vectors, E the sum of the members' widths.
"""

from collections.abc import Sequence

import numpy as np

from eval.errors import UserError
from eval.search.retrieve import Embedded

INPUTS_KEY = "members"


def mean_of_logits(members: Sequence[Embedded], weights: Sequence[float]) -> Embedded:
    """The members as one, whose cosines order as the weighted mean of their logits does; vectors of width E.

    Its scale and bias give that mean: logit = scale x cosine + bias. Its seconds are the members' together.

    Args:
        weights: one for each member, above 0; only their ratios count.

    Raises:
        UserError: fewer than two members, a weight that is not a number above 0, or members of different sets.
    """
    if len(members) < 2 or len(weights) != len(members):
        raise UserError(f"ensemble: expected two members or more and a weight for each; found {len(members)} and {len(weights)}")
    if bad := [weight for weight in weights if not 0 < weight < float("inf")]:
        raise UserError(f"ensemble: a weight is a number above 0; found {bad[0]:g}. Leave a member of weight 0 out")
    sizes = {(len(member.images_ID), len(member.captions_CD)) for member in members}
    if len(sizes) > 1:
        raise UserError(f"ensemble: the members embed different sets of (images, captions): {sorted(sizes)}")
    shares, scale, bias = mean_of_members([member.scale for member in members], [member.bias for member in members], weights)
    roots = [np.float32(share**0.5) for share in shares]
    return Embedded(
        np.concatenate([root * member.images_ID for root, member in zip(roots, members, strict=True)], axis=1),
        np.concatenate([root * member.captions_CD for root, member in zip(roots, members, strict=True)], axis=1),
        scale,
        bias,
        sum(member.image_seconds for member in members),
        sum(member.caption_seconds for member in members),
        members[0].device,
        {INPUTS_KEY: [dict(member.inputs) | {"share": share} for share, member in zip(shares, members, strict=True)]},
    )


def mean_of_members(scales: Sequence[float], biases: Sequence[float], weights: Sequence[float]) -> tuple[list[float], float, float]:
    """(share of each member, scale, bias) of the mean of logits, which is scale x (sum of share x cosine) + bias; shares sum to 1."""
    total = sum(weights)
    parts = [weight / total * scale for weight, scale in zip(weights, scales, strict=True)]
    scale = sum(parts)
    return [part / scale for part in parts], scale, sum(weight / total * bias for weight, bias in zip(weights, biases, strict=True))

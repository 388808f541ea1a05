"""Loss of each image with the captions mined for it: by hard labels, by their ranks, or distilled from a cross-encoder (the teacher).

With z = scale * cos + bias, y the hard label (1 where a cross-encoder relabelled the pair, else 0), t the teacher logit (match less no
match) over the temperature, and s the strength, the loss of the mined captions of an image is
    hard      sum_j H(y_j, sigmoid(z_j))                                 H(p, q) = -p log q - (1 - p) log (1 - q)
    labels    sum_j H(s sigmoid(t_j) + (1 - s) y_j, sigmoid(z_j))        soft labels of the same sigmoid loss (Hinton et al. 2015,
                                                                         arXiv 1503.02531, for two classes)
    lists     (1 - s) hard + s KL(softmax(t) || softmax(z))              both over the image's own caption and its mined ones (listwise
                                                                         distillation: RocketQAv2, Ren et al. 2021, arXiv 2110.07367)
    ranking   sum_j softplus((z_j - z_own + margin) / T)                 each mined caption below the image's own one, as in RankNet (Burges
                                                                         et al. 2005); scale and bias get no gradient from it
Derivatives by z: sigmoid(z_j) less its label; softmax(z) - softmax(t). An image without mined captions adds 0 in each form.

Shape letters: b images of this process, each with its own caption, m mined captions of this process.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import softplus

LINEAR_FROM = 40.0
"""softplus(z) is z itself from here on: exp(-40) is below half a unit in the last place of 40, in float64 too."""


@dataclass(frozen=True)
class SoftLabels:
    """Teacher logits of the images with the captions mined for them.

    Attributes:
        teacher_m: of each mined caption with the image it was mined for, over the temperature.
        strength: s, in (0, 1].
        teacher_b: of each image's own caption, in the form `lists`; None: the form `labels`. Not read where nothing was mined for an
            image, and may be NaN there.
    """

    teacher_m: torch.Tensor
    strength: float
    teacher_b: torch.Tensor | None = None


@dataclass(frozen=True)
class Ranking:
    """How far a mined caption is to stay under the image's own one.

    Attributes:
        margin: in logits.
        temperature: T, in logits: how soft the bound is.
    """

    margin: float
    temperature: float


@dataclass(frozen=True)
class OwnPairs:
    """The pairs of an image and the captions mined for it.

    Attributes:
        rows_m: int64, the row of the image that each mined caption was mined for.
        positive_m: bool, which of them are positive all the same (relabelled by a cross-encoder).
        soft: teacher logits; None: hard labels.
        ranking: the loss of their ranks, in place of labels; positive ones have none.
        host_rows_m: the rows in the host's memory, where `rows_m` is on a device; None: they are read from there, which waits for it.
    """

    rows_m: torch.Tensor
    positive_m: torch.Tensor
    soft: SoftLabels | None = None
    ranking: Ranking | None = None
    host_rows_m: np.ndarray | None = None

    @property
    def needs_own(self) -> bool:
        """Whether the logit of the image's own caption is in the loss too."""
        return self.ranking is not None or (self.soft is not None and self.soft.teacher_b is not None)


@dataclass(frozen=True)
class OwnTerms:
    """Loss of these pairs and its derivatives.

    Attributes:
        loss: scalar, the sum over pairs.
        by_mined_m: derivative by the logit of each mined caption.
        by_own_b: derivative by the logit of each image's own caption; None where it is not in the loss.
    """

    loss: torch.Tensor
    by_mined_m: torch.Tensor
    by_own_b: torch.Tensor | None = None


def own_terms(pairs: OwnPairs, z_m: torch.Tensor, z_b: torch.Tensor | None) -> OwnTerms:
    """Loss and derivatives.

    Args:
        z_m: logits of the mined captions with the images they were mined for.
        z_b: logits of the images' own captions with them; where `pairs.needs_own`.
    """
    soft = pairs.soft
    if pairs.ranking is not None:
        assert z_b is not None
        return _ranked(pairs, pairs.ranking, z_m, z_b)
    if soft is None:
        return _hard(pairs, z_m)
    teacher_m = soft.teacher_m.to(z_m)
    if soft.teacher_b is None:
        return _labels(z_m, teacher_m, pairs.positive_m.to(z_m), soft.strength)
    assert z_b is not None
    hard, lists = _hard(pairs, z_m), _lists(pairs.rows_m, teacher_m, soft.teacher_b.to(z_m), z_m, z_b)
    assert lists.by_own_b is not None
    s = soft.strength
    return OwnTerms(
        (1 - s) * hard.loss + s * lists.loss,
        hard.by_mined_m.mul_(1 - s).add_(lists.by_mined_m, alpha=s),
        lists.by_own_b.mul_(s),
    )


def _hard(pairs: OwnPairs, z_m: torch.Tensor) -> OwnTerms:
    """-log sigmoid(z) of positives, -log sigmoid(-z) of negatives."""
    sign_m = 1 - 2 * pairs.positive_m.to(z_m)
    turned_m = sign_m * z_m
    return OwnTerms(softplus(turned_m, threshold=LINEAR_FROM).sum(), turned_m.sigmoid_().mul_(sign_m))


def _ranked(pairs: OwnPairs, ranking: Ranking, z_m: torch.Tensor, z_b: torch.Tensor) -> OwnTerms:
    """How far each mined caption is from its place under the image's own."""
    negative_m = (~pairs.positive_m).to(z_m)
    over_m = (z_m - z_b[pairs.rows_m] + ranking.margin) / ranking.temperature
    by_mined_m = negative_m * over_m.sigmoid() / ranking.temperature
    loss = (negative_m * softplus(over_m, threshold=LINEAR_FROM)).sum()
    return OwnTerms(loss, by_mined_m, torch.zeros_like(z_b).index_add_(0, pairs.rows_m, -by_mined_m))


def _labels(z_m: torch.Tensor, teacher_m: torch.Tensor, positive_m: torch.Tensor, strength: float) -> OwnTerms:
    """Cross-entropy to soft labels; the share of "no match" is computed by itself, since 1 - label would round it off."""
    label_m = strength * torch.sigmoid(teacher_m) + (1 - strength) * positive_m
    rest_m = strength * torch.sigmoid(-teacher_m) + (1 - strength) * (1 - positive_m)
    loss = (rest_m * softplus(z_m, threshold=LINEAR_FROM) + label_m * softplus(-z_m, threshold=LINEAR_FROM)).sum()
    return OwnTerms(loss, rest_m * torch.sigmoid(z_m) - label_m * torch.sigmoid(-z_m))


def _lists(rows_m: torch.Tensor, teacher_m: torch.Tensor, teacher_b: torch.Tensor, z_m: torch.Tensor, z_b: torch.Tensor) -> OwnTerms:
    """KL divergence of each image's list; a list of one, where nothing was mined, has loss and gradient 0."""
    is_alone_b = torch.ones_like(z_b, dtype=torch.bool).index_fill_(0, rows_m, False)
    teacher_m, teacher_b = _log_softmax(rows_m, teacher_m, torch.where(is_alone_b, torch.zeros_like(z_b), teacher_b))
    student_m, student_b = _log_softmax(rows_m, z_m, z_b)
    loss = (teacher_m.exp() * (teacher_m - student_m)).sum() + (teacher_b.exp() * (teacher_b - student_b)).sum()
    return OwnTerms(loss, student_m.exp() - teacher_m.exp(), student_b.exp() - teacher_b.exp())


def _log_softmax(rows_m: torch.Tensor, mined_m: torch.Tensor, own_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of the softmax over each image's own caption and its mined ones."""
    most_b = own_b.scatter_reduce(0, rows_m, mined_m, "amax")
    sums_b = (own_b - most_b).exp().index_add_(0, rows_m, (mined_m - most_b[rows_m]).exp())
    norm_b = most_b + sums_b.log()
    return mined_m - norm_b[rows_m], own_b - norm_b

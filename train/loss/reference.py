"""The sigmoid loss in its plainest form: what train/loss/sigmoid.py computes block by block and over processes, and its oracle in tests.

Shape letters: B images of the whole batch, N texts: the B captions of the images, in their order, then M mined captions.
"""

import torch
from torch.nn.functional import logsigmoid


def pairwise_sigmoid_loss(logits_BN: torch.Tensor, labels_BN: torch.Tensor) -> torch.Tensor:
    """(1 / B) sum over pairs of -log sigmoid(y z), a scalar (Zhai et al. 2023, arXiv 2303.15343, equation 1).

    Args:
        logits_BN: z = scale * cosine + bias.
        labels_BN: y: 1 for positives, -1 for negatives, 0 for pairs that are left out of the loss.

    >>> pairwise_sigmoid_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[1, -1]]))  # log 2 + log(1 + e^2)
    tensor(2.8201)
    """
    return torch.where(labels_BN == 0, 0.0, -logsigmoid(labels_BN * logits_BN)).sum() / len(logits_BN)


def loss_with_mined_columns(logits_BN: torch.Tensor, labels_BN: torch.Tensor, weight: float) -> torch.Tensor:
    """In-batch term + weight * mined term, both over B: fewer mined captions are not scaled up."""
    B = len(logits_BN)
    mined = pairwise_sigmoid_loss(logits_BN[:, B:], labels_BN[:, B:])
    return pairwise_sigmoid_loss(logits_BN[:, :B], labels_BN[:, :B]) + weight * mined

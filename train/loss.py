"""The sigmoid loss over all images and all captions of all processes, with mined captions as further columns.

L = (1 / B) [ sum over in-batch pairs + weight * sum over mined columns ] of -log sigmoid(y (scale * cos + bias)),
y = +1 for positives, else -1 (Zhai et al. 2023, arXiv 2303.15343; the mined columns are ours). Each process computes the rows of its own
images; the sum over processes is the loss. Shape letters: B images of the whole batch, b of this process, M mined captions of the whole
batch, m of this process, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import logsigmoid


class _GatherRows(torch.autograd.Function):
    """Rows of every process, in rank order; the gradient of a row goes home to the process that owns it, summed over all that used it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """All rows; `counts` says how many each process has."""
        ctx.counts, ctx.rank = counts, dist.get_rank()
        longest = max(counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        start = sum(ctx.counts[: ctx.rank])
        return gradient[start : start + ctx.counts[ctx.rank]], None


def gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Rows of all processes, differentiably.

    Args:
        rows: this process's, first dimension counts[rank].
        counts: how many rows each process has; one entry means a single process, and nothing is sent.
    """
    if len(counts) == 1:
        return rows
    result: torch.Tensor = _GatherRows.apply(rows, counts)
    return result


@dataclass(frozen=True)
class LossTerms:
    """This process's part of the loss; the sum over processes is the loss.

    Attributes:
        total: in_batch + weight * mined, to call backward on.
        in_batch: in-batch term, detached.
        mined: mined term before its weight, detached.
    """

    total: torch.Tensor
    in_batch: torch.Tensor
    mined: torch.Tensor


def pair_loss(
    images_bD: torch.Tensor, captions_BD: torch.Tensor, positive_bB: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Sum over all (image, caption) pairs of -log sigmoid(y (scale * cos + bias)); a scalar.

    Args:
        images_bD, captions_BD: unit vectors, float32 or wider (under autocast too the product is taken in their own precision).
        positive_bB: bool, True where y = +1.
        scale, bias: scalars; scale is not its logarithm.
    """
    with torch.autocast(images_bD.device.type, enabled=False):
        logits_bB = scale * (images_bD @ captions_BD.T) + bias
        return -logsigmoid(torch.where(positive_bB, logits_bB, -logits_bB)).sum()


def own_mined_loss(
    images_bD: torch.Tensor,
    mined_mD: torch.Tensor,
    rows_m: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    positive_m: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over mined captions, each facing its own image alone, of -log sigmoid(y (scale * cos + bias)); a scalar.

    Args:
        rows_m: int64, the row of images_bD each mined caption was mined for.
        positive_m: bool, True where y = +1 (relabelled by a cross-encoder); None: y = -1 everywhere.
    """
    with torch.autocast(images_bD.device.type, enabled=False):
        logits_m = scale * (images_bD.index_select(0, rows_m) * mined_mD).sum(dim=1) + bias
        return -logsigmoid(-logits_m if positive_m is None else torch.where(positive_m, logits_m, -logits_m)).sum()


def combine(in_batch: torch.Tensor, mined: torch.Tensor | None, weight: float, batch_size: int) -> LossTerms:
    """Put the two sums together: (in_batch + weight * mined) / B."""
    in_batch = in_batch / batch_size
    mined = in_batch.new_zeros(()) if mined is None else mined / batch_size
    return LossTerms(in_batch + weight * mined, in_batch.detach(), mined.detach())

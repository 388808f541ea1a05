"""The sigmoid loss of train/loss/reference.py, over all images and texts of all processes, block by block, with its gradients.

L = (1 / B) [ sum over in-batch pairs + weight * sum over mined columns ] of -log sigmoid(y (scale * cos + bias)),
y = +1 for positives, else -1 (Zhai et al. 2023, arXiv 2303.15343; the mined columns are ours). The captions mined for an image may be
distilled from a cross-encoder instead (train/loss/distillation.py). Each process computes the rows of its own images; the sum over
processes is the loss. Logits and labels exist for one block at a time: beyond the embeddings, their gradients and the texts of others,
memory is O(block x D + block x block).

Texts come to the other processes in one of two ways, with the same terms in the same order:
    ring        texts pass from process to process, each with its gradient so far, which is complete after the last hop (the paper's
                section 3.3, with gradients): W messages one after the other, and the texts of one other process in memory. On CPUs, and
                where all texts are more than GATHERED_BYTES.
    all-gather  all texts come at once, while a process computes those of its own, and their gradients go back at once, to be added up in
                the ring's order: 2 messages. On devices such as GPUs. A part of a gradient is rounded before it is added, where the ring
                adds to the sum so far, so the last bits differ from the ring's; CPUs keep theirs.

With z = -y (scale * cos + bias): the loss of a pair is softplus(z), its derivative by the logit -y sigmoid(z) =: g. Then d/d image i is
scale * sum_j g_ij text_j, and d/d scale is sum_ij g_ij cos_ij = sum_i image_i . (sum_j g_ij text_j), so no block is read again for it.

Shape letters: B images of the whole batch, b of this process, n texts of this process (captions of its images, then its mined ones), m
mined captions of this process, r rows and c columns of a block, P positives of a block, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import softplus

from eval.captions import caption_hash
from eval.dataset.retrieval_set import GroupHashes
from eval.processes import Processes, sent
from train.loss.distillation import LINEAR_FROM, OwnPairs, own_terms
from train.loss.positives import BatchPositives

BLOCK = 2048
"""Rows and columns of a block, 17 MB. It decides the order of summation, so it is part of the result's last bits."""
GATHERED_BYTES = 1 << 28
"""Texts of all processes that are held at once, at most: 87,000 of width 768 in float32. Their gradients take as much, twice."""
_PIECE = 1 << 18
"""Logits that the elementwise passes take together, a megabyte: what the caches of the cores hold."""


@dataclass(frozen=True)
class LossTerms:
    """This process's part of the loss; the sum over processes is the loss.

    Attributes:
        total: in_batch + weight * mined, to call backward on, once.
        in_batch: in-batch term, detached.
        mined: mined term before its weight, detached.
    """

    total: torch.Tensor
    in_batch: torch.Tensor
    mined: torch.Tensor


@dataclass(frozen=True)
class Pairing:
    """Which pairs of images and texts are in the loss, and which of them are positive.

    Attributes:
        positives: the positive pairs of this process's images and all gathered texts.
        counts: gathered texts of each process: its captions, and with `mined_scope: all` its mined ones.
        own: the mined captions of this process with the images they were mined for, where these pairs are computed outside the blocks:
            with `mined_scope: own`, and with soft labels; None: no pair is.
        weight: of the mined columns.
        batch_size: B.
        processes: the processes that share the batch.
        block: rows and columns of a block; None: BLOCK.
        captions: captions among the texts of each process; None: one of each image.
    """

    positives: BatchPositives
    counts: tuple[int, ...]
    batch_size: int
    own: OwnPairs | None = None
    weight: float = 0.0
    processes: Processes = Processes()
    block: int | None = None
    captions: tuple[int, ...] | None = None

    def num_captions(self, process: int | None = None) -> int:
        """Texts of a process (None: this one) that are captions of its images, not mined; they come first among its texts."""
        if self.captions is None:
            return self.batch_size // self.processes.world_size
        return self.captions[self.processes.rank if process is None else process]


def sigmoid_loss(images_bD: torch.Tensor, texts_nD: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, pairing: Pairing) -> LossTerms:
    """The loss and, at the same time, its gradients; backward only multiplies them by the incoming gradient.

    Args:
        images_bD, texts_nD: unit vectors, float32 or float64 (products are taken in it, under autocast too); texts are the captions of the
            images, in their order (one of each, or several: every pair of an image and a caption of the batch is an in-batch pair), then
            mined captions.
        scale, bias: scalars; scale is not its logarithm.

    Raises:
        RuntimeError: in backward, when it is called again, or asked for second derivatives.
    """
    total, in_batch, mined = _SigmoidLoss.apply(images_bD, texts_nD, scale, bias, pairing)
    return LossTerms(total, in_batch, mined)


def batch_loss(
    images_BD: torch.Tensor, texts_BD: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, captions: Sequence[str] | None = None
) -> torch.Tensor:
    """The sigmoid loss of a batch in a loop of your own, on one process: a scalar to call backward on, once.

    (1 / B) sum over all pairs of -log sigmoid(y (scale * cos + bias)). Row i of both is a pair. As in training here, every other pair of an
    image and a caption that is true of it by its text is positive too, where the captions are given; logits exist for one block at a time.

    Args:
        images_BD, texts_BD: unit vectors, float32 or float64.
        scale, bias: scalars; scale is not its logarithm (transformers and open_clip keep that: give `logit_scale.exp()`).
        captions: of each pair; equal normalised texts are positives of each other's images. None: only row i with row i.

    Raises:
        ValueError: shapes do not fit together.

    >>> images, texts = torch.eye(3), torch.eye(3)
    >>> alone = batch_loss(images, texts, torch.tensor(10.0), torch.tensor(-10.0))
    >>> shared = batch_loss(images, texts, torch.tensor(10.0), torch.tensor(-10.0), ["a cat", "A cat!", "a dog"])
    >>> round(alone.item(), 4), round(shared.item(), 4)  # two pairs at logit -10 are now positive
    (0.6932, 7.3599)
    """
    if images_BD.ndim != 2 or images_BD.shape != texts_BD.shape or captions is not None and len(captions) != len(images_BD):
        shapes = f"{tuple(images_BD.shape)}, {tuple(texts_BD.shape)}" + (f" and {len(captions)} captions" if captions is not None else "")
        raise ValueError(f"expected images and texts of one shape (batch, width), and as many captions; found {shapes}")
    rows_B = np.arange(len(images_BD))
    hash_B = rows_B if captions is None else np.array([caption_hash(caption) for caption in captions], dtype=np.int64)
    positives = BatchPositives([hash_B], [(rows_B, GroupHashes(rows_B, hash_B))])
    return sigmoid_loss(images_BD, texts_BD, scale, bias, Pairing(positives, (len(rows_B),), len(rows_B))).total


class _SigmoidLoss(torch.autograd.Function):
    """Forward computes the loss and its gradients with respect to images, texts, scale and bias."""

    @staticmethod
    def forward(
        ctx: Any, images_bD: torch.Tensor, texts_nD: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, pairing: Pairing
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Total, in-batch and mined term."""
        needs_images, needs_texts, *_ = ctx.needs_input_grad
        with torch.autocast(images_bD.device.type, enabled=False):
            sums = _Accumulators(images_bD, scale, bias, pairing, needs_images or not needs_texts)
            texts_gradient_nD = _add_all_texts(sums, texts_nD, pairing, needs_texts)
            factor = scale / pairing.batch_size
            if sums.images_gradient_bD is not None:
                scale_gradient = _sum_of_products(images_bD, sums.images_gradient_bD, sums.block)
                sums.images_gradient_bD.mul_(factor)
            else:  # from the texts' gradients: over all processes it is the same sum
                assert texts_gradient_nD is not None
                scale_gradient = _sum_of_products(texts_nD, texts_gradient_nD, sums.block)
            scale_gradient -= sums.not_of_scale
            if texts_gradient_nD is not None:
                texts_gradient_nD.mul_(factor)
            ctx.gradients = (
                sums.images_gradient_bD if needs_images else None,
                texts_gradient_nD,
                (scale_gradient / pairing.batch_size).to(scale.dtype),
                (sums.bias_gradient / pairing.batch_size).to(bias.dtype),
            )
        in_batch, mined = (value / pairing.batch_size for value in (sums.in_batch, sums.mined))
        total = in_batch + pairing.weight * mined
        ctx.mark_non_differentiable(in_batch, mined)
        return total.to(images_bD.dtype), in_batch, mined

    @staticmethod
    def backward(ctx: Any, incoming: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Multiply in place, so that no second copy of the gradients is ever held; hence only once."""
        if torch.is_grad_enabled():
            raise RuntimeError("sigmoid_loss has no second derivatives: backward was called with create_graph=True")
        if ctx.gradients is None:
            raise RuntimeError("sigmoid_loss: backward was called a second time; its gradients are handed out once")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if gradient is None else gradient.mul_(incoming.to(gradient.dtype)) for gradient in gradients), None


def _add_all_texts(sums: "_Accumulators", texts_nD: torch.Tensor, pairing: Pairing, needs_texts: bool) -> torch.Tensor | None:
    """Add the texts of all processes; returns the gradient of this process's own before scale / B, if it is needed."""
    own = pairing.counts[pairing.processes.rank]
    gradient_nD = torch.zeros_like(texts_nD) if needs_texts else None
    if pairing.processes.world_size == 1:
        sums.add_texts(texts_nD[:own], None if gradient_nD is None else gradient_nD[:own], 0)
    else:
        exchange = _gather_exchange if _is_gathered(texts_nD, pairing.counts) else _ring_exchange
        summed_nD = exchange(sums, texts_nD[:own], pairing, needs_texts)
        if gradient_nD is not None and summed_nD is not None:
            gradient_nD[:own] = summed_nD
    if pairing.own is not None:
        sums.add_own_pairs(texts_nD, gradient_nD, pairing.own)
    return gradient_nD


def _is_gathered(texts_nD: torch.Tensor, counts: tuple[int, ...]) -> bool:
    """Whether the texts of all processes come at once; the same on every process."""
    num_bytes = len(counts) * max(counts) * texts_nD.shape[1] * texts_nD.element_size()
    return texts_nD.device.type != "cpu" and num_bytes <= GATHERED_BYTES


def _gather_exchange(sums: "_Accumulators", texts_nD: torch.Tensor, pairing: Pairing, needs_texts: bool) -> torch.Tensor | None:
    """Add the texts of every process, which come at once; returns the gradient of this process's own, summed in the ring's order."""
    rank, world_size, counts = pairing.processes.rank, pairing.processes.world_size, pairing.counts
    padded_nD = texts_nD.new_zeros((max(counts), texts_nD.shape[1]))
    padded_nD[: counts[rank]] = texts_nD
    all_WnD = padded_nD.new_empty((world_size, *padded_nD.shape))
    gathering = dist.all_gather_into_tensor(all_WnD.flatten(0, 1), padded_nD, async_op=True)
    gradients_WnD = torch.zeros_like(all_WnD) if needs_texts else None
    for hop in range(world_size):
        owner = (rank - hop) % world_size
        if hop == 1:
            gathering.wait()
        texts_of_nD = (padded_nD if hop == 0 else all_WnD[owner])[: counts[owner]]
        sums.add_texts(texts_of_nD, None if gradients_WnD is None else gradients_WnD[owner, : counts[owner]], owner)
    if gradients_WnD is None:
        return None
    parts_WnD = torch.empty_like(gradients_WnD)
    dist.all_to_all_single(parts_WnD, gradients_WnD)
    total_nD = parts_WnD[rank, : counts[rank]]
    for hop in range(1, world_size):
        total_nD += parts_WnD[(rank + hop) % world_size, : counts[rank]]
    return total_nD


def _ring_exchange(sums: "_Accumulators", texts_nD: torch.Tensor, pairing: Pairing, needs_texts: bool) -> torch.Tensor | None:
    """Add the texts of every process as they arrive; returns the gradient of this process's own, summed in the ring's order."""
    rank, world_size = pairing.processes.rank, pairing.processes.world_size
    shapes = [(2 if needs_texts else 1, count, texts_nD.shape[1]) for count in pairing.counts]
    current_2nD = texts_nD.new_zeros(shapes[rank])
    current_2nD[0] = texts_nD
    for hop in range(world_size):
        owner = (rank - hop) % world_size
        sums.add_texts(current_2nD[0], current_2nD[1] if needs_texts else None, owner)
        if hop < world_size - 1:
            next_shape = shapes[(owner - 1) % world_size]
            current_2nD = _send_and_receive(current_2nD, current_2nD.new_empty(next_shape), pairing.processes)
    return _send_and_receive(current_2nD[1], torch.empty_like(texts_nD), pairing.processes) if needs_texts else None


def _send_and_receive(sent: torch.Tensor, received: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Send to the next process and receive from the previous one."""
    following, previous = (processes.rank + 1) % processes.world_size, (processes.rank - 1) % processes.world_size
    operations = [dist.P2POp(dist.isend, sent.contiguous(), following), dist.P2POp(dist.irecv, received, previous)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received


def _sum_of_products(one_ND: torch.Tensor, other_ND: torch.Tensor, block: int) -> torch.Tensor:
    """Sum over all elements of one * other, added up in float64; a scalar."""
    total = one_ND.new_zeros((), dtype=torch.float64)
    for start in range(0, len(one_ND), block):
        total += (one_ND[start : start + block] * other_ND[start : start + block]).sum(dtype=torch.float64)
    return total


class _Accumulators:
    """The sums of this process over the blocks of its images and all texts.

    Attributes:
        images_gradient_bD: sum of g * text, before scale / B; None where it is not needed.
        in_batch, mined: float64 scalars, sums of the pairs' losses.
        bias_gradient: float64 scalar, sum of g, weighted.
        not_of_scale: float64 scalar, sum of g * cos over pairs that leave the scale as it is.
    """

    def __init__(self, images_bD: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, pairing: Pairing, needs_images: bool) -> None:
        self._images_bD, self._scale, self._bias, self._pairing = images_bD, scale.detach(), bias.detach(), pairing
        self.block = pairing.block or BLOCK
        self.images_gradient_bD = torch.zeros_like(images_bD) if needs_images else None
        zeros = (images_bD.new_zeros((), dtype=torch.float64) for _ in range(4))
        self.in_batch, self.mined, self.bias_gradient, self.not_of_scale = zeros
        self._own_rows_m: np.ndarray | None = None
        if pairing.own is not None and pairing.counts[pairing.processes.rank] > pairing.num_captions():
            own = pairing.own
            self._own_rows_m = own.rows_m.cpu().numpy() if own.host_rows_m is None else own.host_rows_m
        widest = min(self.block, max(pairing.counts))
        self._logits = images_bD.new_empty(min(self.block, len(images_bD)) * widest)
        self._losses = images_bD.new_empty(min(_PIECE, len(self._logits)))

    def add_texts(self, texts_nD: torch.Tensor, gradient_nD: torch.Tensor | None, owner: int) -> None:
        """Add all images of this process against the texts of one process; the texts' gradient (before scale / B) is added to in place."""
        num_captions = self._pairing.num_captions(owner)
        in_batch, mined = _spans(0, num_captions, self.block), _spans(num_captions, len(texts_nD), self.block)
        for rows in _spans(0, len(self._images_bD), self.block):
            scaled_rD = self._images_bD[rows] * self._scale
            for columns in in_batch:
                loss = self._add_block(rows, scaled_rD, columns, texts_nD, gradient_nD, owner, 1.0)
                self.in_batch += loss
            for columns in mined:
                loss = self._add_block(rows, scaled_rD, columns, texts_nD, gradient_nD, owner, self._pairing.weight)
                self.mined += loss

    def _add_block(
        self,
        rows: slice,
        scaled_rD: torch.Tensor,
        columns: slice,
        texts_nD: torch.Tensor,
        gradient_nD: torch.Tensor | None,
        owner: int,
        weight: float,
    ) -> torch.Tensor:
        """Loss of one block; its gradients are added to both sides."""
        texts_cD = texts_nD[columns]
        size = len(scaled_rD) * len(texts_cD)
        z_rc = torch.mm(scaled_rD, texts_cD.T, out=self._logits[:size].view(len(scaled_rD), len(texts_cD)))
        positive_P, left_out_P = self._positions(rows, owner, columns)
        flat = z_rc.view(-1)
        flat[left_out_P] = -torch.inf  # no loss, and no gradient
        flat[positive_P] = -flat[positive_P] - 2 * self._bias  # the bias is added to all logits below
        loss, sum_of_sigmoids = self._softplus_and_sigmoid(flat)
        self.bias_gradient += weight * (sum_of_sigmoids - 2 * flat[positive_P].sum(dtype=torch.float64))
        flat[positive_P] = -flat[positive_P]
        g_rc = z_rc
        if self.images_gradient_bD is not None:
            self.images_gradient_bD[rows].addmm_(g_rc, texts_cD, alpha=weight)
        if gradient_nD is not None:
            gradient_nD[columns].addmm_(g_rc.T, self._images_bD[rows], alpha=weight)
        return loss

    def _softplus_and_sigmoid(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the bias and replace z by sigmoid(z); returns the sums of softplus(z) and of sigmoid(z), float64 scalars.

        In pieces that fit the cache: all five passes find a piece there, and memory is read and written once.
        """
        loss, sigmoids = z.new_zeros((), dtype=torch.float64), z.new_zeros((), dtype=torch.float64)
        for piece in z.split(_PIECE):
            losses = self._losses[: len(piece)]
            softplus(piece.add_(self._bias), 1.0, LINEAR_FROM, out=losses)  # type: ignore[call-arg]  # out= exists, the stub lacks it
            loss += losses.sum()
            sigmoids += piece.sigmoid_().sum()
        return loss, sigmoids

    def _positions(self, rows: slice, owner: int, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat positions of the block's positive pairs, each once, and of the pairs left out of the loss."""
        known, width = self._pairing.positives, columns.stop - columns.start
        positive_P, left_out_P = (
            rows_P * width + columns_P for rows_P, columns_P in (known.pairs(rows, owner, columns), known.left_out(rows, owner, columns))
        )
        left_out_P = np.setdiff1d(left_out_P, positive_P)
        if self._own_rows_m is not None and owner == self._pairing.processes.rank and columns.start >= self._pairing.num_captions():
            own_P = self._own_positions(rows, columns)
            positive_P, left_out_P = np.setdiff1d(positive_P, own_P), np.union1d(left_out_P, own_P)
        positive, left_out = (sent(torch.from_numpy(positions), self._images_bD.device) for positions in (positive_P, left_out_P))
        return positive, left_out

    def _own_positions(self, rows: slice, columns: slice) -> np.ndarray:
        """Flat positions of a block's pairs of a mined caption and the image it was mined for; `add_own_pairs` computes these."""
        assert self._own_rows_m is not None
        first = self._pairing.num_captions()
        rows_c = self._own_rows_m[columns.start - first : columns.stop - first]
        columns_P = np.flatnonzero((rows_c >= rows.start) & (rows_c < rows.stop))
        return (rows_c[columns_P] - rows.start) * (columns.stop - columns.start) + columns_P

    def add_own_pairs(self, texts_nD: torch.Tensor, gradient_nD: torch.Tensor | None, pairs: OwnPairs) -> None:
        """Add the mined captions of this process, each with the image it was mined for; that image's own one too, where needed."""
        first = self._pairing.num_captions()
        each_b = torch.arange(first, device=texts_nD.device)
        z_b = self._own_logits(texts_nD[:first], each_b) if pairs.needs_own else None
        z_m = self._own_logits(texts_nD[first:], pairs.rows_m)
        terms = own_terms(pairs, z_m, z_b)
        self.mined += terms.loss
        for g_n, z_n, rows_n, start in ((terms.by_mined_m, z_m, pairs.rows_m, first), (terms.by_own_b, z_b, each_b, 0)):
            if g_n is not None and z_n is not None:
                if pairs.ranking is not None:  # the bias's gradients cancel out
                    self.not_of_scale += self._pairing.weight * (g_n * (z_n - self._bias)).sum(dtype=torch.float64) / self._scale
                self._add_own(g_n * self._pairing.weight, rows_n, texts_nD[start:], None if gradient_nD is None else gradient_nD[start:])

    def _own_logits(self, texts_mD: torch.Tensor, rows_m: torch.Tensor) -> torch.Tensor:
        """Logit of each text with the image of its row."""
        cosines_m = texts_mD.new_empty(len(texts_mD))
        for part in _spans(0, len(rows_m), self.block):
            cosines_m[part] = torch.einsum("cd,cd->c", self._images_bD.index_select(0, rows_m[part]), texts_mD[part])
        return cosines_m.mul_(self._scale).add_(self._bias)

    def _add_own(self, g_m: torch.Tensor, rows_m: torch.Tensor, texts_mD: torch.Tensor, gradient_mD: torch.Tensor | None) -> None:
        """Add the gradients of pairs, given the derivative of the weighted loss by the logit of each."""
        self.bias_gradient += g_m.sum()
        for part in _spans(0, len(rows_m), self.block):
            rows_c, g_c1 = rows_m[part], g_m[part][:, None]
            if self.images_gradient_bD is not None:
                self.images_gradient_bD.index_add_(0, rows_c, g_c1 * texts_mD[part])
            if gradient_mD is not None:
                gradient_mD[part].addcmul_(g_c1, self._images_bD.index_select(0, rows_c))


def _spans(start: int, stop: int, block: int) -> list[slice]:
    """Slices of at most `block` from start to stop."""
    return [slice(first, min(first + block, stop)) for first in range(start, stop, block)]

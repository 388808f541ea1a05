"""One optimizer step of the cross-encoder: score every pair, cross-entropy over the pairs of all processes, then the update of
train/optim/update.py.

The loss is the mean over all pairs of the whole batch, whichever process or micro-batch holds them, so any number of processes and any size
of micro-batches give the same gradients. Source of the loss: image-text matching of ALBEF (arXiv 2107.07651) and BLIP (2201.12086).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from eval.processes import brought, sent
from train.engine.run import NoShare, StepOutcome
from train.model.grad_cache import seed_dropout
from train.optim.update import Update
from train.reranker.batches import MatchBatch, PairKind

if TYPE_CHECKING:
    from eval.processes import Processes
    from train.config.reranker import RerankerLoopConfig
    from train.reranker.model import TunedCrossEncoder


@dataclass(frozen=True, kw_only=True)
class MatchResult(StepOutcome):
    """What a step says, over all processes; the loss is the mean over pairs.

    Attributes:
        num_pairs: by kind.
        shortfall: negatives that are missing.
        gap: mean of match logit less no-match logit over true pairs, less that over false ones; 0: nothing is told apart.
    """

    num_pairs: dict[PairKind, int]
    shortfall: int
    gap: float

    @property
    def num_true(self) -> int:
        """True pairs."""
        return self.num_pairs[PairKind.TRUE]

    @property
    def num_false(self) -> int:
        """False pairs."""
        return sum(self.num_pairs.values()) - self.num_true


class MatchStepper:
    """Takes optimizer steps on a cross-encoder.

    Attributes:
        update: the second half of a step, with fp16's loss scale.
    """

    def __init__(
        self,
        config: RerankerLoopConfig,
        seed: int,
        tuned: TunedCrossEncoder,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
        autocast: Any,
    ) -> None:
        """autocast: arithmetic of the towers."""
        self._tuned, self._processes, self._autocast = tuned, processes, autocast
        self._seed, self._micro_batch_size = seed, config.micro_batch_size
        self._device = next(tuned.module.parameters()).device
        self.update = Update(config, tuned, optimizer, processes)

    def train_step(self, batch: MatchBatch | None, *, stop_asked: bool = False) -> MatchResult:
        """Take one step; call on every process.

        Args:
            batch: None: this process has none.
            stop_asked: this process was told to stop.

        Raises:
            NoShare: some process has no batch; nothing was updated on any.
            NotFinite: on every process, before anything is updated; in fp16 only when a smaller scale cannot help.
        """
        num_without, num_pairs = map(int, self.update.sum([float(batch is None), 0.0 if batch is None else float(len(batch.kinds_N))]))
        if batch is None or num_without:
            raise NoShare
        self._tuned.begin()
        self.update.gradients.zero()
        loss, true_margins, false_margins = self._forward_backward(batch, num_pairs)
        self.update.gather_gradients()
        kinds = [float((batch.kinds_N == kind).sum()) for kind in PairKind]
        own = [loss, true_margins, false_margins, batch.shortfall, len(batch.undecodable), float(stop_asked), *kinds]
        loss, true_margins, false_margins, shortfall, replaced, stop, *counts = self.update.sum(own)
        norm, updated, _ = self.update.apply(batch.step, loss)
        of_kinds = {kind: int(count) for kind, count in zip(PairKind, counts, strict=True)}
        num_false = num_pairs - of_kinds[PairKind.TRUE]
        gap = true_margins / of_kinds[PairKind.TRUE] - (false_margins / num_false if num_false else 0.0)
        return MatchResult(
            loss=loss,
            num_pairs=of_kinds,
            shortfall=int(shortfall),
            gap=gap,
            grad_norm=norm,
            num_replaced=int(replaced),
            stop_asked=stop > 0,
            skipped=not updated,
        )

    def rehearse(self, batch: MatchBatch) -> None:
        """Take the forward and backward pass of a batch for its memory alone."""

        def forward_backward() -> None:
            self._tuned.begin()
            self._forward_backward(batch, len(batch.kinds_N))
            self.update.gather_gradients()

        self.update.rehearse(forward_backward)

    def _forward_backward(self, batch: MatchBatch, num_pairs: int) -> tuple[float, float, float]:
        """This process's part of the loss, and the sums of its margins over true and over false pairs; num_pairs: of all processes."""
        sums_3: list[torch.Tensor] = []
        for number, part in enumerate(batch.parts(self._micro_batch_size)):
            seed_dropout(self._seed, batch.step, self._processes.rank, number)
            pixels_p, pictures_N, token_ids_NL = (
                sent(values, self._device) for values in (part.pixels_p, part.pictures_N, part.token_ids_NL)
            )
            pixels_p = self._tuned.inputs.picture_bytes.values(pixels_p)
            logits_N2 = self._tuned.logits(pixels_p, pictures_N, token_ids_NL, part.mask_NL, self._autocast)
            labels_N = sent(part.labels_N, self._device)
            part_loss = cross_entropy(logits_N2, labels_N, reduction="sum") / num_pairs
            self.update.gradients.expect(bool(part.owners_N[-1] == batch.owners_N[-1]))
            (part_loss * self.update.factor).backward()
            margins_N = (logits_N2[:, 1] - logits_N2[:, 0]).detach().double()
            places = [sent((part.labels_N == label).nonzero()[:, 0], self._device) for label in (1, 0)]  # known on the host without a wait
            sums_3.append(torch.stack([part_loss.detach().double(), *(margins_N[own].sum() for own in places)]))
        loss, true_margins, false_margins = (sum(column, 0.0) for column in zip(*brought(torch.stack(sums_3))().tolist(), strict=True))
        return loss, true_margins, false_margins

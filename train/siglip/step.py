"""One optimizer step: embed, loss over all processes, gradients of it, their sum over processes, check, clip, update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from eval.processes import sent
from train.data.batches import TruePairs
from train.data.caption_pool import CaptionPool
from train.engine.run import StepOutcome
from train.loss.distillation import OwnPairs, Ranking, SoftLabels
from train.loss.sigmoid import LossTerms, Pairing, sigmoid_loss
from train.model.grad_cache import Towers
from train.optim.update import Update

if TYPE_CHECKING:
    from eval.dataset.retrieval_set import RetrievalSet
    from eval.processes import Processes
    from train.config.job import JobConfig
    from train.data.batches import Batch
    from train.model.compiled import CompiledTowers
    from train.model.siglip import TunedModel


@dataclass(frozen=True, kw_only=True)
class StepResult(StepOutcome):
    """The result of a step, with the two terms of its loss; scale and bias are those after it."""

    loss_in_batch: float
    loss_mined: float
    num_mined: int
    logit_scale: float
    logit_bias: float


class Stepper:
    """Takes optimizer steps on a model.

    Attributes:
        update: the second half of a step, with fp16's loss scale.
        true_pairs: which pairs are positives, in the batch and among the mined.
    """

    def __init__(
        self,
        config: JobConfig,
        tuned: TunedModel,
        optimizer: torch.optim.Optimizer,
        dataset: RetrievalSet,
        processes: Processes,
        autocast: Any,
    ) -> None:
        self._config, self._tuned = config, tuned
        self.true_pairs = TruePairs(CaptionPool(dataset))
        self._processes = processes
        self._device = next(tuned.siglip.parameters()).device
        compiled = _compiled(config, tuned, processes) if config.train.compile else None
        self._towers = Towers(tuned, config.train.micro_batch_size, (config.seed, processes.rank), autocast, compiled)
        self.update = Update(config.train, tuned, optimizer, processes)

    def train_step(self, batch: Batch, *, stop_asked: bool = False) -> StepResult:
        """Take one step; `stop_asked`: this process was told to stop.

        Raises:
            NotFinite: on every process, before anything is updated; in fp16 only when a smaller scale cannot help.
        """
        self._towers.begin(batch.step)
        self.update.gradients.zero()
        terms = self._forward_backward(batch)
        *own, norm = self.update.read([terms.total, terms.in_batch, terms.mined, self.update.gradients.norm()])
        summed = self.update.sum([*own, len(batch.mined_rows_m), len(batch.undecodable), float(stop_asked)])
        loss, in_batch, mined, total_mined, replaced, stop = summed
        norm, updated, (scale, bias) = self.update.apply(batch.step, loss, norm, self._tuned.scale_and_bias)
        return StepResult(
            loss=loss,
            loss_in_batch=in_batch,
            loss_mined=mined,
            num_mined=int(total_mined),
            logit_scale=scale,
            logit_bias=bias,
            grad_norm=norm,
            num_replaced=int(replaced),
            stop_asked=stop > 0,
            skipped=not updated,
        )

    def rehearse(self, batch: Batch) -> None:
        """Take the forward and backward pass of a batch for its memory alone."""

        def forward_backward() -> None:
            self._towers.begin(batch.step)
            self._forward_backward(batch)

        self.update.rehearse(forward_backward)

    def _forward_backward(self, batch: Batch) -> LossTerms:
        """This process's part of the loss, and the gradients of all processes summed; under fp16 scaled on the way."""
        images_bD, texts_nD = self._towers.embed(batch)
        terms = sigmoid_loss(images_bD, texts_nD, *self._tuned.scale_and_bias(), self._pairing(batch))
        (terms.total * self.update.factor).backward()
        self._towers.finish(batch, images_bD, texts_nD)
        self.update.gather_gradients()
        return terms

    def _pairing(self, batch: Batch) -> Pairing:
        """Which pairs are in the loss. Caption indices are gathered, as only the process itself knows which of its pictures were
        replaced, and what was mined for them."""
        scope, weight = (None, 0.0) if self._config.mining is None else (self._config.mining.mined_scope, self._config.mining.weight)
        paired = [batch.captions_c, batch.mined_captions_m] if scope == "all" else [batch.captions_c]  # with the images of all processes
        gathered = self._processes.gather(torch.cat([torch.tensor([len(batch.captions_c)]), *paired]).numpy())
        texts = [captions[1:] for captions in gathered]
        soft = self._soft_labels(batch)
        own = None
        if scope == "own" or soft is not None:
            rows_m = batch.mined_rows_m
            own = OwnPairs(sent(rows_m, self._device), self._own_positive(batch), soft, self._ranking(), rows_m.numpy())
        return Pairing(
            self.true_pairs.of_batch(batch.images_b.numpy(), texts),
            tuple(len(captions) for captions in texts),
            len(batch.images_b) * self._processes.world_size,
            own,
            weight,
            self._processes,
            captions=tuple(int(captions[0]) for captions in gathered),
        )

    def _ranking(self) -> Ranking | None:
        asked = None if self._config.mining is None else self._config.mining.ranking
        return None if asked is None else Ranking(asked.margin, asked.temperature)

    def _soft_labels(self, batch: Batch) -> SoftLabels | None:
        """Teacher logits of the mined pairs, where mining.distil asks for them and a table is in force."""
        distil = None if self._config.mining is None else self._config.mining.distil
        if distil is None or batch.teacher_logits_m is None:
            return None
        mined_m, own_b = (
            None if logits is None else sent(logits, self._device) / distil.temperature
            for logits in (batch.teacher_logits_m, batch.teacher_logits_c if distil.form == "lists" else None)
        )
        assert mined_m is not None
        return SoftLabels(mined_m, distil.strength, own_b)

    def _own_positive(self, batch: Batch) -> torch.Tensor:
        """Which mined captions are positives of the image they were mined for: those a cross-encoder relabelled."""
        images_m, captions_m = batch.images_b[batch.mined_rows_m].numpy(), batch.mined_captions_m.numpy()
        return sent(torch.from_numpy(self.true_pairs.contains(images_m, captions_m)), self._device)


def _compiled(config: JobConfig, tuned: TunedModel, processes: Processes) -> CompiledTowers:
    """The towers, compiled for every step of the job; torch's compiler is imported only for it."""
    from train.model.compiled import CompiledTowers, passes_of

    return CompiledTowers(tuned, passes_of(config, processes.world_size))

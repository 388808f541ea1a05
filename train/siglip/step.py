"""One optimizer step: embed, loss over all processes, gradients of it, their sum over processes, check, clip, update.

Two exchanges carry what the processes tell one another beside embeddings and gradients. What is known with the batch (caption indices, how
many pictures were replaced, who was told to stop, who has no batch) leaves over the host's group before the forward pass, and is waited for
after it. The losses leave over the device's group before the backward pass, and are read with the gradient's norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eval.processes import sent
from eval.sharded import is_sharded
from train.data.batches import TruePairs
from train.data.caption_pool import CaptionPool
from train.engine.run import NoShare, StepOutcome
from train.loss.distillation import OwnPairs, Ranking, SoftLabels
from train.loss.sigmoid import Pairing, sigmoid_loss
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


@dataclass(frozen=True)
class _Shares:
    """What the processes told one another of a step's batch.

    Attributes:
        num_replaced: pictures of all that do not decode.
        num_mined: mined captions of all.
        stop_asked: whether any process was told to stop.
        num_captions: of each process's images.
        texts: of each process, pool indices of the texts that meet the images of all: captions, then with `mined_scope: all` mined ones.
    """

    num_replaced: int
    num_mined: int
    stop_asked: bool
    num_captions: tuple[int, ...]
    texts: list[np.ndarray]


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
        self._is_sharded = is_sharded(tuned.siglip)
        compiled = _compiled(config, tuned, processes) if config.train.compile else None
        self._towers = Towers(tuned, config.train.micro_batch_size, (config.seed, processes.rank), autocast, compiled)
        self.update = Update(config.train, tuned, optimizer, processes)

    def train_step(self, batch: Batch | None, *, stop_asked: bool = False) -> StepResult:
        """Take one step; call on every process.

        Args:
            batch: None: this process has none.
            stop_asked: this process was told to stop.

        Raises:
            NoShare: some process has no batch; nothing was updated on any.
            NotFinite: on every process, before anything is updated; in fp16 only when a smaller scale cannot help.
        """
        shares = self._tell(batch, stop_asked)
        if batch is None or self._is_sharded:  # a pass of sharded weights takes every process: it must not begin on some
            shares()
        assert batch is not None
        self._towers.begin(batch.step)
        self.update.gradients.zero()
        known, losses = self._forward_backward(batch, shares)
        (loss, in_batch, mined), norm = self.update.read_sums(losses)
        norm, updated, (scale, bias) = self.update.apply(batch.step, loss, norm, self._tuned.scale_and_bias)
        return StepResult(
            loss=loss,
            loss_in_batch=in_batch,
            loss_mined=mined,
            num_mined=known.num_mined,
            logit_scale=scale,
            logit_bias=bias,
            grad_norm=norm,
            num_replaced=known.num_replaced,
            stop_asked=known.stop_asked,
            skipped=not updated,
        )

    def rehearse(self, batch: Batch) -> None:
        """Take the forward and backward pass of a batch for its memory alone."""

        def forward_backward() -> None:
            self._towers.begin(batch.step)
            self._forward_backward(batch, self._tell(batch))

        self.update.rehearse(forward_backward)

    def _tell(self, batch: Batch | None, stop_asked: bool = False) -> Callable[[], _Shares]:
        """Tell the other processes what only this one knows of its share (which pictures were replaced, what was mined for them); what is
        returned waits for what they tell, and raises NoShare where one has none."""
        train, scope = self._config.train, self._mined_scope
        head, texts = [0, int(stop_asked), 0, 0, 0], list[torch.Tensor]()
        if batch is not None:
            head = [1, int(stop_asked), len(batch.undecodable), len(batch.mined_rows_m), len(batch.captions_c)]
            texts = [batch.captions_c, batch.mined_captions_m] if scope == "all" else [batch.captions_c]
        per_image = train.captions_per_image + (self._config.most_mined if scope == "all" else 0)
        most = len(head) + per_image * (train.batch_size // self._processes.world_size)
        told = self._processes.gather_later(torch.cat([torch.tensor(head), *texts]).numpy(), most)

        def shares() -> _Shares:
            rows = told()
            has_batch, stop, replaced, mined, captions = np.array([row[: len(head)] for row in rows]).T
            if not has_batch.all():
                raise NoShare
            sums = int(replaced.sum()), int(mined.sum()), bool(stop.any())
            return _Shares(*sums, tuple(captions.tolist()), [row[len(head) :] for row in rows])

        return shares

    @property
    def _mined_scope(self) -> str | None:
        return None if self._config.mining is None else self._config.mining.mined_scope

    def _forward_backward(self, batch: Batch, shares: Callable[[], _Shares]) -> tuple[_Shares, Callable[[], torch.Tensor]]:
        """What was told of the batch, and the losses of all processes (W, 3); the gradients of all are summed, under fp16 scaled on the
        way."""
        images_bD, texts_nD = self._towers.embed(batch)
        known = shares()
        terms = sigmoid_loss(images_bD, texts_nD, *self._tuned.scale_and_bias(), self._pairing(batch, known))
        losses = self.update.of_all([terms.total, terms.in_batch, terms.mined])
        (terms.total * self.update.factor).backward()
        self._towers.finish(batch, images_bD, texts_nD, self.update.gradients.expect)
        self.update.gather_gradients()
        return known, losses

    def _pairing(self, batch: Batch, known: _Shares) -> Pairing:
        """Which pairs are in the loss."""
        scope, weight = self._mined_scope, 0.0 if self._config.mining is None else self._config.mining.weight
        soft = self._soft_labels(batch)
        own = None
        if scope == "own" or soft is not None:
            rows_m = batch.mined_rows_m
            own = OwnPairs(sent(rows_m, self._device), self._own_positive(batch), soft, self._ranking(), rows_m.numpy())
        return Pairing(
            self.true_pairs.of_batch(batch.images_b.numpy(), known.texts),
            tuple(len(captions) for captions in known.texts),
            len(batch.images_b) * self._processes.world_size,
            own,
            weight,
            self._processes,
            captions=known.num_captions,
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

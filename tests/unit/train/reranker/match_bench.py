"""A matcher, a batch of its pairs and a step over them, for test_step.py and its worker."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.processes import Processes
from tests.small_job import load
from train.config.reranker import CrossEncoderConfig, NegativesConfig, RerankerLoopConfig
from train.data.caption_pool import CaptionPool
from train.data.hard_image_order import HardImages
from train.data.negatives import Negatives
from train.data.order import BatchOrder
from train.reranker.batches import HardTables, MatchBatch, MatchBatches
from train.reranker.model import TunedCrossEncoder, build_cross_encoder, make_cross_encoder_optimizer
from train.reranker.step import MatchResult, MatchStepper

BATCH = 8


def uneven_table(pool: CaptionPool) -> Negatives:
    """Of image i up to i % 4 captions that are not true of it: so processes and micro-batches hold unlike numbers of pairs."""
    dataset = pool.dataset
    rows = []
    for image in range(dataset.num_images):
        false = np.flatnonzero(~dataset.is_positive(np.array(image), pool.hash_C))
        rows.append(false[image :: len(false) // 5][: image % 4])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    found = np.concatenate(rows).astype(np.int64)
    zeros = np.zeros(len(found), np.float32)
    return Negatives("made", offsets, found, np.ones(len(found), np.int64), zeros, zeros)


@dataclass
class Bench:
    """A matcher and the first batch of this process."""

    tuned: TunedCrossEncoder
    loop: RerankerLoopConfig
    batch: MatchBatch
    processes: Processes
    stepper: MatchStepper | None = None

    @classmethod
    def make(
        cls,
        manifest: Path,
        blip: str,
        *,
        processes: Processes = Processes(),
        micro_batch_size: int | None = None,
        precision: str = "fp32",
        dropout: float = 0.0,
        **model: Any,
    ) -> "Bench":
        """model: of CrossEncoderConfig."""
        tuned = build_cross_encoder(CrossEncoderConfig(base=blip, **model), 3)
        draws = torch.Generator().manual_seed(3)
        for name, value in tuned.module.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(value, std=0.1, generator=draws)
        for module in tuned.module.modules():  # BLIP's released configurations say 0
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        pool = CaptionPool(load(manifest))
        order = BatchOrder(pool.dataset.num_images, BATCH, 3)
        table = uneven_table(pool)
        images = HardImages.of_table(table, pool.dataset.num_captions)
        negatives = NegativesConfig(captions_per_image=3, images_per_caption=1)
        batch = MatchBatches(pool, tuned.inputs, order, processes, negatives, HardTables(table, images))[1]
        assert isinstance(batch, MatchBatch)
        loop = RerankerLoopConfig(
            max_steps=9,
            batch_size=BATCH,
            micro_batch_size=micro_batch_size,
            learning_rate=1e-3,
            max_grad_norm=None,
            precision=precision,
            eval_every_steps=1,
            checkpoint_every_steps=1,
        )
        return cls(tuned, loop, batch, processes)

    def step(self, autocast: Any) -> MatchResult:
        """Take the step."""
        optimizer = make_cross_encoder_optimizer(self.tuned, self.loop)
        self.stepper = MatchStepper(self.loop, 3, self.tuned, optimizer, self.processes, autocast)
        return self.stepper.train_step(self.batch)

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the step, by parameter."""
        return {name: value.grad.detach().numpy().copy() for name, value in self.tuned.trainable() if value.grad is not None}

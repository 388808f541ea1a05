"""The job of tuning SigLIP: what it needs before its first step (train/siglip/setup.py builds it), and the lines printed then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.data.mined_order import describe_form
from train.engine.run import Run
from train.model.frozen_tower import frozen_lines
from train.model.grad_cache import cached_size

if TYPE_CHECKING:
    from eval.dataset.retrieval_set import RetrievalSet
    from train.config.job import JobConfig
    from train.data.hard_image_order import EpochOrder
    from train.model.siglip import TunedModel


@dataclass(kw_only=True)
class Job(Run):
    """A configured tuning of SigLIP on this process.

    Attributes:
        final_set: the split of the final evaluation, test or else val, with the relevant items `evaluation` asks for; None without either.
        order: the images of each step, before any mining.
        cross_encoder_sha256: fingerprint of the cross-encoder of mining; None without one.
    """

    config: JobConfig
    tuned: TunedModel
    final_set: RetrievalSet | None
    order: EpochOrder
    cross_encoder_sha256: str | None

    def describe(self) -> list[str]:
        """What a person should know before the first step, line by line."""
        config, order = self.config, self.order
        num_trained = sum(parameter.numel() for _, parameter in self.tuned.trainable())
        num_all = sum(parameter.numel() for parameter in self.tuned.siglip.parameters())
        share = config.train.batch_size // self.processes.world_size
        lines = [
            f"model     {self.base}: {num_all / 1e6:.1f} M parameters, {num_trained / 1e6:.2f} M of them train",
            self.data_line(),
            *self.splits.expand_lines,
            *self.size_lines(order.num_epochs(config.train.max_steps)),
            *describe_form(config.mining, order),
        ]
        most_mined = config.mining.most_columns if config.mining is not None else 0
        micro_batch_size = cached_size(config.train.micro_batch_size, share, most_mined)
        if micro_batch_size is not None:
            texts = f" and their texts, mined ones included (up to {share * (1 + most_mined)})," if most_mined else " and as many captions"
            lines.append(
                f"memory    cached micro-batches: {share} images{texts} {micro_batch_size} at a time; what trains and does not fit into "
                "one is embedded twice"
            )
        if config.train.shard:
            lines.append(f"memory    weights, gradients and optimizer state in parts, one on each of {self.processes.world_size} processes")
        lines += frozen_lines(config)
        lines += [
            f"watch     {watched.config.name}: {watched.dataset.num_images:,} images with {watched.dataset.num_captions:,} captions; "
            f"on a drop: {watched.config.on_drop}"
            for watched in self.splits.watch
        ]
        if self.pool.additional.texts:
            lines.append(f"pool      {len(self.pool.additional.texts):,} additional captions without images, to mine among")
        if self.truth is not None:
            lines.append(f"truth     {len(self.truth):,} additional true pairs, to count false negatives with")
        return lines + self.leakage_lines()

"""Everything a job needs before its first step: processes, data, model, optimizer; each derived quantity told once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from eval.dataset.leakage import Leakage
from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from train.config.job import JobConfig
from train.data.caption_pool import CaptionPool
from train.data.hard_image_order import EpochOrder
from train.data.mined_order import describe_form
from train.data.splits import RetentionSet
from train.engine.distributed import SharedFolder
from train.engine.summary import data_line, leakage_lines
from train.model.frozen_tower import frozen_lines
from train.model.grad_cache import cached_size
from train.model.siglip import TunedModel


@dataclass
class Job:
    """A configured job on this process.

    Attributes:
        final_set: the split of the final evaluation, test or else val, with the right answers `evaluation` asks for; None without either.
        pool: the captions that can be mined.
        data_sha256: of the train split and of further captions that can be mined.
        matcher_sha256: fingerprint of the cross-encoder that mining asks; None where it asks none.
        members_sha256: of the fixed checkpoints that mine beside the model; None where there are none.
        base: checkpoint the job starts from, as this process reads it.
        shared: the run's folder, for every process to read.
    """

    config: JobConfig
    folder: Path
    accelerator: Accelerator
    processes: Processes
    say: Callable[[str], None]
    train_set: RetrievalSet
    val_set: RetrievalSet | None
    test_set: RetrievalSet | None
    final_set: RetrievalSet | None
    unused_splits: dict[str, int]
    data_sha256: str
    truth: set[tuple[str, str]] | None
    leakages: list[Leakage]
    base: str
    tuned: TunedModel
    optimizer: torch.optim.AdamW
    order: EpochOrder
    pool: CaptionPool
    shared: SharedFolder
    matcher_sha256: str | None
    members_sha256: str | None
    watch_sets: list[RetentionSet] = field(default_factory=list)
    expand_lines: list[str] = field(default_factory=list)

    @property
    def data_place(self) -> str:
        """Where what is trained on comes from, in words."""
        return f"{self.config.data.source}{self.pool.place}"

    def autocast(self) -> AbstractContextManager[Any]:
        """Arithmetic of the towers in training."""
        return self.accelerator.autocast()


def describe(job: Job) -> list[str]:
    """What a person should know before the first step, line by line."""
    config, order = job.config, job.order
    num_trained = sum(parameter.numel() for _, parameter in job.tuned.trainable())
    num_all = sum(parameter.numel() for parameter in job.tuned.siglip.parameters())
    share = config.train.batch_size // job.processes.world_size
    lines = [
        f"model     {job.base}: {num_all / 1e6:.1f} M parameters, {num_trained / 1e6:.2f} M of them train",
        data_line(job),
        *job.expand_lines,
        f"loop      {config.train.max_steps:,} steps of {config.train.batch_size} images = "
        f"{order.num_epochs(config.train.max_steps):.1f} epochs, "
        f"{config.train.num_warmup_steps} of them warm-up; {config.train.precision}",
        f"machine   {job.processes.world_size} process(es) x {share} images on {job.accelerator.device}, "
        f"{torch.get_num_threads()} thread(s) each",
        *describe_form(config.mining, order),
    ]
    most_mined = config.mining.most_columns if config.mining is not None else 0
    micro_batch_size = cached_size(config.train.micro_batch_size, share, most_mined)
    if micro_batch_size is not None:
        texts = f" and their texts, mined ones included (up to {share * (1 + most_mined)})," if most_mined else " and as many captions"
        lines.append(
            f"memory    cached micro-batches: {share} images{texts} {micro_batch_size} at a time; what trains and does not fit into one is "
            "embedded twice"
        )
    if config.train.shard:
        lines.append(f"memory    weights, gradients and moments in parts, one on each of {job.processes.world_size} processes")
    lines += frozen_lines(config)
    lines += [
        f"watch     {watched.config.name}: {watched.dataset.num_images:,} images with {watched.dataset.num_captions:,} captions; "
        f"on a drop: {watched.config.on_drop}"
        for watched in job.watch_sets
    ]
    if job.pool.additional.texts:
        lines.append(f"pool      {len(job.pool.additional.texts):,} further captions without images, to mine among")
    if config.mining is not None and config.mining.ensemble:
        lines.append(
            f"ensemble  {', '.join(config.mining.ensemble)}: mine too; run once, their embeddings kept in {job.folder / 'ensemble'}"
        )
    if job.truth is not None:
        lines.append(f"truth     {len(job.truth):,} further true pairs, to count false negatives with")
    return lines + leakage_lines(job.leakages)

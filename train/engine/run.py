"""What a run is, whatever it trains: the base of SigLIP's job (train/siglip/job.py) and of the reranker's (train/reranker/job.py)."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from eval.encoder.identity import file_stamps
from eval.execution import Execution, no_progress
from eval.manifest import made_split
from eval.progress import say
from eval.sharded import is_sharded

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from eval.dataset.leakage import Leakage
    from eval.dataset.pixel_cache import PixelStore
    from eval.dataset.retrieval_set import RetrievalSet
    from eval.encoder.encoder import ImageSource
    from eval.processes import Processes
    from train.config.run import RunConfig
    from train.data.caption_pool import CaptionPool
    from train.data.splits import Splits
    from train.engine.checkpoint import State
    from train.engine.distributed import SharedFolder
    from train.optim.optimizer import Trainable


@dataclass(kw_only=True)
class Run(ABC):
    """A configured run on this process: all that is there before its first step.

    Attributes:
        pool: the train split and the captions that can be mined.
        text_lines: what of the captions a person should know before the first step.
        truth: (image id, caption id) pairs known to be true beyond the data; counted among the mined, never trained on.
        base: the checkpoint the run starts from, as this process reads it.
        base_files: `file_stamps` of it, taken before it was read.
        shared: the run's folder, for every process to read.
    """

    config: RunConfig
    accelerator: Accelerator
    processes: Processes
    splits: Splits
    pool: CaptionPool
    text_lines: list[str]
    truth: set[tuple[str, str]] | None
    base: str
    base_files: dict[str, tuple[int, int]]
    tuned: Trainable
    optimizer: torch.optim.AdamW
    shared: SharedFolder

    @property
    def folder(self) -> Path:
        """runs/NAME."""
        return self.config.run_folder

    @property
    def train_set(self) -> RetrievalSet:
        """The split that is trained on."""
        return self.splits.train

    @property
    def val_set(self) -> RetrievalSet | None:
        """The split that is evaluated on while training."""
        return self.splits.val

    def evaluated(self) -> list[tuple[str, ImageSource]]:
        """What evaluations read and is not known to decode, each with its name: val, test and the retention sets, unless
        data.skip_broken has left out of them what does not."""
        splits = self.splits
        if self.config.data.skip_broken:
            return []
        named: list[tuple[str, ImageSource]] = [(str(split.split), split) for split in (splits.val, splits.test) if split is not None]
        return named + [(f"watch {watched.config.name}", watched.dataset) for watched in splits.watch]

    @cached_property
    def leakages(self) -> list[Leakage]:
        """What the splits share."""
        return self.splits.leakages()

    def execution(self, on_progress: Callable[[int], Any] = no_progress) -> Execution:
        """How this run embeds, searches and mines."""
        return Execution(
            processes=self.processes,
            device=self.accelerator.device,
            num_workers=self.config.data.num_workers,
            on_progress=on_progress,
            pixels=self.pixels,
        )

    @cached_property
    def pixels(self) -> PixelStore | None:
        """The caches of resized pictures, as data.cache_pixels asks for; two where training does not read what evaluations do."""
        data, train = self.config.data, self.config.train
        if data.cache_pixels is None:
            return None
        from eval.dataset.pixel_cache import PixelStore

        return PixelStore(data.cache_pixels, num_files=2 if train.random_crop_min_area < 1 or data.jpeg_at_scale else 1)

    def log(self, text: str) -> None:
        """Print a line on the main process, next to the progress bar."""
        if self.processes.is_main:
            say(text)

    def export_best(self, state: State, export: Callable[[Any, str, Path, Any], int]) -> Path:
        """Export the best checkpoint to runs/NAME/export; where this process reads it. Call on every process.

        It is made from the model in memory, whose base may have changed on the disk since; where that lies in parts, from the base, which
        is then checked.

        Args:
            export: train.siglip.export.export_checkpoint, or its like.

        Raises:
            UserError, OSError: it cannot be made.
        """
        if self.processes.is_main:
            tuned = None if is_sharded(self.tuned.module) else self.tuned
            if tuned is not None:  # a part is small, and others lie where they lie
                tuned.module.to("cpu")
            step = export(self.config, "best", self.folder / "export", tuned)
            note = "" if step or state.best_score is None else ": no later checkpoint was better on val than what it started from"
            self.log(f"exported the checkpoint of step {step}{note}")
        return self.shared.bring(self.folder / "export")

    @abstractmethod
    def load_base(self) -> Trainable:
        """The checkpoint the run starts from, as it is now."""

    def check_base(self, state: State) -> None:
        """Refuse a base that was changed while the run went on, before it is read again. It is read for this only if a file was touched.

        Raises:
            UserError: naming what differs.
        """
        if file_stamps(self.base) != self.base_files:
            state.check_base(self.base, self.folder, self.load_base())

    @abstractmethod
    def describe(self) -> list[str]:
        """What a person should know before the first step, line by line."""

    @abstractmethod
    def memory_keys(self) -> list[str]:
        """Keys, with values, that make a step need less memory and change nothing that is learnt."""

    def smaller_micro_batch(self, now: int | None) -> list[str]:
        """The key that halves the micro-batch, where it can be halved.

        Args:
            now: train.micro_batch_size.
        """
        share = self.config.train.batch_size // self.processes.world_size
        size = min(now or share, share)
        return [f"train.micro_batch_size={size // 2} (now {size})"] if size > 1 else []

    def memory_remedy(self) -> str:
        """What a person can change where a step needs more memory than there is."""
        keys = " and ".join(self.memory_keys())
        if not keys:
            return "Nothing is left to lower in the same run: take a smaller train.batch_size or a smaller model under another name="
        return f"Add {keys} to the same command: it goes on from the newest checkpoint, and nothing that is learnt changes but by rounding"

    def size_lines(self, num_epochs: float) -> list[str]:
        """The size of the loop, which passes so often over the images, and the machine's."""
        train, world_size = self.config.train, self.processes.world_size
        averaged = []
        if train.ema_decay is not None:
            averaged = [f"average   evaluated, chosen and exported is the moving average of the weights, of decay {train.ema_decay:g}"]
        return [
            f"loop      {train.max_steps:,} steps of {train.batch_size} images = {num_epochs:.1f} epochs, {train.num_warmup_steps} of them "
            f"warm-up; {train.precision}",
            *averaged,
            f"machine   {world_size} process(es) x {train.batch_size // world_size} images on {_in_words(self.accelerator.device)}, "
            f"{torch.get_num_threads()} thread(s) each",
            *self._pixel_lines(),
        ]

    def waiting_line(self, share: float) -> str:
        """What a person can do where a share of the steps' time goes into waiting for pictures."""
        data, processes_here = self.config.data, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        lines = [f"{100 * share:.0f}% of the steps' time goes into waiting for pictures"]
        if (most := cores // processes_here) > data.num_workers:
            now = f"now {data.num_workers} for each of {processes_here} process(es)"
            lines.append(f"data.num_workers={most} would use all {cores} cores ({now})")
        if data.cache_pixels is None:
            tuned: Any = self.tuned
            num_bytes = tuned.inputs.picture_bytes.read(Image.new("RGB", (8, 8))).nbytes
            gib = math.ceil(1.1 * sum(split.num_images for split in self.splits.all()) * num_bytes / 2**30 * 10) / 10
            lines.append(f"data.cache_pixels={gib:g} (GiB of disk) decodes each picture once, not once an epoch (docs/pixel-cache.md)")
        return "; ".join(lines)

    def _pixel_lines(self) -> list[str]:
        """What is cached of pictures, where that is asked for."""
        if self.pixels is None:
            return []
        self.reader(self.train_set)  # which opens it
        return self.pixels.lines()

    def reader(self, dataset: ImageSource) -> Callable[[int], Any] | None:
        """What reads an image of a data set through the cache of resized pictures; None without one."""
        tuned: Any = self.tuned
        return None if self.pixels is None else tuned.inputs.picture_bytes.reader(dataset, self.pixels)

    def evaluation_reader(self, dataset: ImageSource) -> Callable[[int], Any] | None:
        """The same where evaluations embed the pictures as training does; else None."""
        return None

    def data_lines(self) -> list[str]:
        """What there is to train on, to evaluate on, what no split of the run uses, what data.expand added, and what captions are like."""
        splits = self.splits
        line = (
            f"data      {splits.train.num_images:,} images with {splits.train.num_captions:,} captions to train on"
            + "".join(f"; {split.split}: {split.num_images:,} / {split.num_captions:,}" for split in (splits.val, splits.test) if split)
            + "".join(f"; not used: split {name!r}, {number:,} image(s)" for name, number in sorted(splits.unused.items()))
        )
        return [line, *self._made_lines(), *splits.all_reading_lines(), *splits.expand_lines, *self.text_lines]

    def _made_lines(self) -> list[str]:
        """How splits were made that the manifest does not have, and which keys follow from the data."""
        made, values = self.splits.made, self.config.from_data
        lines = []
        if made is not None:
            lines.append(
                f"splits    made by a hash of each image's group or id (val {made.val:g}, test {made.test:g}, seed {made.seed}), "
                f"written to {self.folder / made_split.FILE}"
            )
        if values:
            lines.append("sizes     from the data: " + " ".join(f"{key}={value}" for key, value in values.items()))
        return lines

    def leakage_lines(self) -> list[str]:
        """What the splits share, told before the first step."""
        return [
            f"leakage   {leak}"
            for leak in self.leakages
            if leak.num_shared_images or leak.num_shared_captions or leak.num_shared_groups_images
        ]


def _in_words(device: torch.device) -> str:
    """A device, a GPU by what it is."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


Event = tuple[str, dict[str, Any], str]
"""A line of metrics.jsonl: its event and the rest of it, and what is logged with it."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation between steps found.

    Attributes:
        line: of metrics.jsonl, on val, but for `best`; None without val.
        note: added to what is logged.
        barred: what bars the step from being best.
        stopped_by: what ends the run here.
        events: what follows.
    """

    line: dict[str, Any] | None
    note: str = ""
    barred: list[str] = field(default_factory=list)
    stopped_by: str | None = None
    events: list[Event] = field(default_factory=list)


class NoShare(Exception):
    """Some process has no share of the next batch: the step was taken on none, and all raise this."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What the loop reads of a step, over all processes.

    Attributes:
        loss: mean over the batch.
        grad_norm: before clipping.
        num_replaced: pictures that do not decode.
        stop_asked: whether any process was told to stop.
        skipped: nothing was updated, for fp16 overflowed.
    """

    loss: float
    grad_norm: float
    num_replaced: int
    stop_asked: bool
    skipped: bool = False

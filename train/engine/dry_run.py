"""A run up to its first step, in a temporary folder: is all there that it needs, how long will it take, how much memory and disk."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from eval.dataset.images import ImageError
from eval.dataset.pixel_cache import PixelStore
from eval.encoder.loader import SHARED_MEMORY, shared_bytes
from eval.errors import WriteError, free_bytes, needing_memory
from eval.sharded import is_sharded
from train.data.batches import PART, Parts, PictureReader
from train.engine.loop import BaseLoop, has_own_memory

if TYPE_CHECKING:
    from eval.processes import Processes
    from train.config.run import RunConfig
    from train.engine.run import Run

_TIMED_STEPS, _MOST_SECONDS = 3, 60.0
_DECODED = 32
_FORWARD_SHARE = 1 / 3
"""Of the time of a step: what embeds an image without gradients, as the backward pass takes twice the forward pass."""
_BYTES_TRAINED, _BYTES_EXPORTED = 12, 4
"""Of a parameter: weight and two moments in a checkpoint, and the weight in an export, all float32."""


@contextmanager
def elsewhere(config: RunConfig, processes: Processes) -> Iterator[tuple[RunConfig, Path]]:
    """The configuration with its runs in a temporary folder, which is removed at the end; call on every process."""
    folder = Path(processes.from_main(lambda: tempfile.mkdtemp(prefix="siglip-tuner-")))
    changes: dict[str, Any] = {"runs_folder": str(folder)}
    if (rerank := getattr(config, "rerank", None)) is not None:
        changes["rerank"] = rerank.model_copy(update={"pair_scores": False})
    try:
        yield config.model_copy(update=changes), folder
    finally:
        if processes.is_main:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class StepCost:
    """What the largest step takes on this process.

    Attributes:
        seconds: median of the timed ones, without the update of the weights.
        num_timed: how many were timed.
        flops: floating point operations of all processes; None: not counted, as weights lie in parts.
        decode_seconds: to decode its pictures.
        cached_seconds: to read them once a cache of pixels holds them; None without one.
        num_broken: pictures that did not decode, of `num_decoded`.
    """

    seconds: float
    num_timed: int
    flops: int | None
    decode_seconds: float
    cached_seconds: float | None
    num_broken: int
    num_decoded: int


def measure_step(loop: BaseLoop, job: Run) -> StepCost:
    """Take the largest step of the run, without its update, up to four times; call on every process.

    Raises:
        OutOfMemory: it does not suffice.
    """
    counter = None if is_sharded(job.tuned.module) else FlopCounterMode(display=False)
    with needing_memory(f"This was the largest step of the run. {job.memory_remedy()}"):
        batch = loop.largest_batch()
        if counter is None:
            first = _timed(loop, batch)
        else:
            with counter:
                first = _timed(loop, batch)
        if getattr(job.config.train, "compile", False):  # which is not done under a counter, and takes minutes
            loop.stepper.rehearse(batch)
        timed: list[float] = []
        while len(timed) < _TIMED_STEPS and not job.processes.any_later(first + sum(timed) > _MOST_SECONDS)():
            timed.append(_timed(loop, batch))
    decode_seconds, num_broken, num_decoded = _decode(job)
    cached_seconds = None
    if (gib := job.config.data.cache_pixels) is not None:
        with tempfile.TemporaryDirectory(prefix="siglip-tuner-") as folder:
            store = PixelStore(gib, Path(folder))
            _decode(job, store)
            cached_seconds, _, _ = _decode(job, store)
    flops = None if counter is None else counter.get_total_flops() * job.processes.world_size
    return StepCost(statistics.median(timed or [first]), max(1, len(timed)), flops, decode_seconds, cached_seconds, num_broken, num_decoded)


def _timed(loop: BaseLoop, batch: Any) -> float:
    started = time.perf_counter()
    loop.stepper.rehearse(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _decode(job: Run, store: PixelStore | None = None) -> tuple[float, int, int]:
    """(seconds to decode a process's share of a batch, pictures of a sample that do not decode, pictures of the sample)."""
    share = job.config.train.batch_size // job.processes.world_size
    number = min(_DECODED, job.train_set.num_images)
    tuned: Any = job.tuned
    parts = Parts(1, job.config.train.random_crop_min_area, job.config.data.jpeg_at_scale, store)
    pictures = PictureReader(job.train_set, tuned.inputs.picture_bytes, job.config.seed, parts)
    started, num_broken = time.perf_counter(), 0
    for place in range(number):
        try:
            pictures.pixels(place * job.train_set.num_images // number, 0)
        except ImageError:
            num_broken += 1
    seconds = (time.perf_counter() - started) / number
    return seconds * share / max(1, min(job.config.data.num_workers, os.cpu_count() or 1)), num_broken, number


def plan_lines(loop: BaseLoop, job: Run, cost: StepCost, runs_folder: Path) -> list[str]:
    """The plan of a run and what it costs, line by line.

    Args:
        runs_folder: where the run will lie.

    Raises:
        WriteError: its disk has no room for checkpoints and export.
    """
    train = job.config.train
    num_refreshes = loop.num_refreshes()
    num_evals = 1 + -(-train.max_steps // train.eval_every_steps) if job.val_set is not None or job.splits.watch else 0
    num_checkpoints = 1 + -(-train.max_steps // train.checkpoint_every_steps)
    lines = [
        f"plan      {train.max_steps:,} steps, {num_evals} evaluations, {num_checkpoints} checkpoints (the newest "
        f"{train.keep_checkpoints} and the best are kept), {num_refreshes} refreshes of mining",
        _cost_line(job, cost),
        _time_line(job, cost, num_evals, num_refreshes),
        *_memory_lines(job),
        _disk_line(job, runs_folder),
    ]
    if cost.num_broken:
        found = f"{cost.num_broken} of {cost.num_decoded} looked at do not decode"
        lines.append(f"pictures  {found}, and would be replaced in training; --check-images lists every one")
    return lines + _shared_memory_lines(loop, job)


def _cost_line(job: Run, cost: StepCost) -> str:
    flops = ""
    if cost.flops is not None:
        flops = f", {cost.flops:.2g} FLOPs ({cost.flops * job.config.train.max_steps:.2g} in all)"
    cached = "" if cost.cached_seconds is None else f", reading them from the cache {cost.cached_seconds:.2g} s"
    return (
        f"step      {cost.seconds:.3g} s (median of {cost.num_timed}, as large as any, without the update){flops}; "
        f"decoding its pictures {cost.decode_seconds:.2g} s{cached} with {job.config.data.num_workers} worker(s)"
    )


def _time_line(job: Run, cost: StepCost, num_evals: int, num_refreshes: int) -> str:
    """By the slower of computing and reading pictures; evaluations and mining by the images that they embed. With a cache of pixels those
    of the first epoch are decoded and the others read."""
    train, splits = job.config.train, job.splits
    read_seconds = cost.decode_seconds if cost.cached_seconds is None else cost.cached_seconds
    num_first = min(train.max_steps, splits.train.num_images // train.batch_size)
    steps = max(cost.seconds, cost.decode_seconds) * num_first + max(cost.seconds, read_seconds) * (train.max_steps - num_first)
    per_image = max(cost.seconds * _FORWARD_SHARE, read_seconds) / train.batch_size
    watched = sum(retained.dataset.num_images for retained in splits.watch)
    final = splits.test or splits.val
    evaluated = num_evals * ((splits.val.num_images if splits.val is not None else 0) + watched)
    evaluated += 2 * ((final.num_images if final is not None else 0) + watched)
    seconds = {
        "steps": steps,
        "evaluations": per_image * evaluated,
        "mining": per_image * num_refreshes * splits.train.num_images,
    }
    parts = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items() if value)
    return f"time      about {_duration(sum(seconds.values()))} ({parts}), without what a cross-encoder scores"


def _duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _memory_lines(job: Run) -> list[str]:
    device = job.accelerator.device
    if has_own_memory(device):
        if device.type != "cuda":
            return []
        peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return [f"memory    the largest step takes {peak / 2**30:.1f} GiB of {total / 2**30:.1f}"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [f"memory    up to {peak / 2**30:.1f} GiB with the largest step, of {_physical_bytes() / 2**30:.1f}"]


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _disk_line(job: Run, runs_folder: Path) -> str:
    trained = sum(parameter.numel() for _, parameter in job.tuned.trainable())
    every = sum(parameter.numel() for parameter in job.tuned.module.parameters())
    num_kept = min(job.config.train.keep_checkpoints + 2, 1 + job.config.train.max_steps)  # the best, and one that is being written
    averaged = _BYTES_EXPORTED * trained if job.config.train.ema_decay is not None else 0
    forms = getattr(job.config, "export", None)
    export = (_BYTES_EXPORTED + (forms.bytes_per_weight if forms is not None else 0)) * every
    checkpoint = _BYTES_TRAINED * trained + averaged
    needed, free = num_kept * checkpoint + export, free_bytes(runs_folder)
    line = (
        f"{num_kept} checkpoints of {checkpoint / 1e9:.2g} GB and the export of {export / 1e9:.2g} GB need {needed / 1e9:.2g} GB in "
        f"{runs_folder}, {free / 1e9:.3g} GB are free"
    )
    if needed > free:
        raise WriteError(f"{line}: make room there, lower train.keep_checkpoints, or give another runs_folder=")
    return f"disk      {line}"


def _shared_memory_lines(loop: BaseLoop, job: Run) -> list[str]:
    workers, share = job.config.data.num_workers, job.config.train.batch_size // job.processes.world_size
    if not workers or not os.path.isdir(SHARED_MEMORY):
        return []
    needed, free = shared_bytes(workers, loop.batches()[0].part_bytes, -(-share // PART)), free_bytes(Path(SHARED_MEMORY))
    sent = f"{workers} worker(s) send up to {needed / 2**20:,.0f} MiB of pictures"
    line = f"shared    {SHARED_MEMORY} has {free / 2**20:,.0f} MiB free; {sent}"
    return [line if needed <= free else f"{line}, through slower pipes then: give it more (docker run --shm-size=1g) or take fewer workers"]

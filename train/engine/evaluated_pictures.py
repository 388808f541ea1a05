"""The pictures of a run's evaluations, decoded once before its first step: one that is broken is told now, not after hours of training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eval.dataset.broken import find_broken

if TYPE_CHECKING:
    from train.engine.run import Run

_SHOWN = 20


def check_evaluated(job: Run, on_progress: Callable[[int], Any]) -> list[str]:
    """Decode every picture that an evaluation of the run needs, in the loader's workers; call on every process.

    Those of val, test and the retention sets are decoded already where data.skip_broken leaves broken ones out. One that a cache of pixels
    holds was decoded when it was written there; the others are written there.

    Args:
        on_progress: called with each picture; what it raises ends the check.

    Returns:
        A line on how many they are and how long it took; none where nothing is evaluated.

    Raises:
        UserError: on every process, naming those that do not decode.
    """
    started, num_checked, faults = time.perf_counter(), 0, list[str]()
    execution = job.execution(on_progress)
    for label, dataset in job.evaluated():
        broken = find_broken(dataset, label, execution, job.evaluation_reader(dataset))
        num_checked += dataset.num_images
        faults += [f"  [{label}] {fault}" for fault in broken.values()]
    job.processes.raise_together(_told(faults, num_checked, job.config.data.skip_broken))
    if not num_checked:
        return []
    return [f"pictures  {num_checked:,} of evaluations, all decode (looked at in {time.perf_counter() - started:.1f} s)"]


def _told(faults: list[str], num_checked: int, skips_broken: bool) -> str:
    """Empty where there is no fault."""
    if not faults:
        return ""
    remedy = "Mend them, or take their rows out"
    if not skips_broken:
        remedy += "; data.skip_broken=true leaves those of val, test and retention sets out, counted and listed"
    more = [f"  ... and {len(faults) - _SHOWN:,} more; --check-images names them all"] if len(faults) > _SHOWN else []
    first = f"{len(faults):,} of the {num_checked:,} pictures that evaluations need do not decode:"
    last = f"Every picture must decode in evaluation (--check-images decodes those of training too). {remedy}"
    return "\n".join([first, *faults[:_SHOWN], *more, last])

"""The machine a run meets: processes that came together, the precision that is to be had, exact float32."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState

from eval.errors import UserError
from eval.first_stage import use_exact_float32
from eval.processes import Processes
from train.config import LoopConfig


def start_machine(train: LoopConfig, check: Callable[[Processes], Any]) -> tuple[Accelerator, Processes]:
    """Bring up Accelerate and check that as many processes came together as were started.

    Args:
        check: what else must be true of the machine; called on every process, raises UserError where it is not.

    Raises:
        UserError: they did not, or the batch does not divide among them, or the precision is not to be had here, or as `check` says.
    """
    # Who joins the processes first sets how long one waits for another; left alone, gloo waits half an hour and nccl ten minutes.
    timeout = timedelta(seconds=train.timeout_seconds)
    if train.precision == "fp16" and PartialState(timeout=timeout).device.type != "cuda":
        raise UserError(
            f"train.precision fp16 needs a CUDA GPU, and this run is on {PartialState().device.type!r}: there autocast would compute in "
            "float32 or without a loss scale, and not say so. Take train.precision=bf16 or fp32"
        )
    precision = "no" if train.precision == "fp32" else train.precision
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)])
    processes = Processes.current()

    def look() -> None:
        _check_processes(train, processes, accelerator.num_processes)
        check(processes)

    processes.together(look)
    use_exact_float32()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator, processes


def _check_processes(train: LoopConfig, processes: Processes, num_processes: int) -> None:
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if processes.world_size != expected or num_processes != expected:
        raise UserError(
            f"{expected} processes were started, but {processes.world_size} came together. On CPUs: "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N (accelerate's own MULTI_CPU starts one)"
        )
    if train.batch_size % processes.world_size:
        raise UserError(
            f"train.batch_size {train.batch_size} does not divide among {processes.world_size} processes; take a multiple of "
            f"{processes.world_size}"
        )

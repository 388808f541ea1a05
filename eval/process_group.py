"""`python -m eval` under torchrun or accelerate: the processes a launcher started find one another, and each takes its device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from eval.errors import UserError
from eval.execution import Precision
from eval.processes import Processes
from eval.progress import say

# The others wait while the main process computes intervals and writes; a process that dies is the launcher's to notice, not a clock's.
_PATIENCE = timedelta(days=1)


@contextmanager
def joined_processes() -> Iterator[tuple[Processes, torch.device]]:
    """The processes of this command, together for as long as this lasts, and this one's device.

    A launcher says with RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR who is who; without one (or of one process) nothing is set up.
    On GPUs each process has the one its LOCAL_RANK counts (nccl); on CPUs, or where ACCELERATE_USE_CPU is true, they talk through gloo.

    Raises:
        UserError: there are fewer GPUs than processes on this machine, or the processes do not come together.
    """
    device = launched_device()
    if _number("WORLD_SIZE", 1) == 1:
        yield Processes(), device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes did not come together ({error}). Start them with torchrun "
            "--nproc-per-node N -m eval ..., or unset WORLD_SIZE to run one"
        ) from error
    try:
        yield Processes.current(_PATIENCE), device
    finally:
        dist.destroy_process_group()


def launched_device() -> torch.device:
    """The GPU of this process's own, or the CPU.

    Raises:
        UserError: several processes would share a GPU.
    """
    if asks_for_cpu() or not torch.cuda.is_available():
        return torch.device("cpu")
    if _number("WORLD_SIZE", 1) == 1:
        return torch.device("cuda")
    here, num_gpus = _number("LOCAL_WORLD_SIZE", _number("LOCAL_RANK", 0) + 1), torch.cuda.device_count()
    if here > num_gpus:
        raise UserError(f"{here} processes were started here, for {num_gpus} GPU(s); start one per GPU, or set ACCELERATE_USE_CPU=true")
    return torch.device("cuda", _number("LOCAL_RANK", 0))


def asks_for_cpu() -> bool:
    """Whether the environment asks for the CPU, or an Apple GPU, the only accelerator, is left alone, which is said once.

    Sums of losses and norms are float64 on the device, and float64, as much else here, does not run on Metal (mps): with fallbacks that
    copy to the CPU and back at every step nothing would be gained that was measured. accelerate would choose it by itself.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if asked or torch.cuda.is_available() or not torch.backends.mps.is_available():
        return asked
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if os.environ.get("RANK", "0") == "0":
        say("device    cpu: the Apple GPU (mps) lacks the float64 of losses and norms, and is not used")
    return True


def _number(name: str, default: int) -> int:
    """A variable of the launcher's."""
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        told = f"the environment's {name} is {os.environ[name]!r}, expected a number as launchers set it"
        raise UserError(f"{told}; unset it to run one process") from None


def use_exact_float32() -> None:
    """Turn TF32 off, so that float32 means float32 on a GPU too (cuDNN uses TF32 by default)."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def without_bf16(device: torch.device) -> str:
    """Why bfloat16 is not to be asked of a device, in words; empty: it computes in it, as GPUs do from compute capability 8.0 on."""
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return ""
    return f"{torch.cuda.get_device_name(device)} has no bfloat16 of its own and would emulate it, slower than float32"


def precision_fault(precision: Precision, device: torch.device) -> str:
    """Why towers do not embed in a precision on a device, and what to take; empty: they do."""
    if precision == "bf16" and (lacking := without_bf16(device)):
        return f"{lacking}. Take fp16 or fp32"
    if precision == "fp16" and device.type != "cuda":
        return f"it needs a CUDA GPU, and this is {device.type!r}. Take fp32, or bf16"
    return ""

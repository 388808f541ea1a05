"""The distributed setup of a run: its processes, their precision, exact float32, and a folder that all of them read."""

import atexit
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState

from eval.errors import UserError, naming
from eval.process_group import asks_for_cpu, use_exact_float32, without_bf16
from eval.processes import Processes
from train.config.run import LoopConfig, RunConfig
from train.engine.metrics_log import flatten


def start_distributed(train: LoopConfig, check: Callable[[Processes], Any]) -> tuple[Accelerator, Processes]:
    """Bring up Accelerate and check that as many processes came together as were started.

    Args:
        check: what else must be true of the distributed setup; called on every process, raises UserError where it is not.

    Raises:
        UserError: they did not, or the precision is not to be had here, or as `check` says.
    """
    # Who joins the processes first sets how long one waits for another; left alone, gloo waits half an hour and nccl ten minutes.
    timeout = timedelta(seconds=train.timeout_seconds)
    on_cpu = asks_for_cpu()  # which accelerate reads from the environment; its PartialState does not
    if train.precision == "fp16" and PartialState(cpu=on_cpu, timeout=timeout).device.type != "cuda":
        raise UserError(
            f"train.precision fp16 needs a CUDA GPU, and this run is on {PartialState().device.type!r}: there autocast would compute in "
            "float32 or without a loss scale, and give no warning. Take train.precision=bf16 or fp32"
        )
    precision = "no" if train.precision == "fp32" else train.precision
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)])
    processes = Processes.current(timeout)

    def check_all() -> None:
        if train.precision == "bf16" and (lacking := without_bf16(accelerator.device)):
            raise UserError(f"train.precision bf16: {lacking}. Take train.precision=fp16")
        expected, found = int(os.environ.get("WORLD_SIZE", "1")), processes.world_size
        if not found == accelerator.num_processes == expected:
            raise UserError(
                f"{expected} processes were started, but {found} came together. On CPUs: "
                "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N (accelerate's own MULTI_CPU starts one)"
            )
        check(processes)

    processes.together(check_all)
    use_exact_float32()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator, processes


OWN_KEYS = ("runs_folder", "data.num_workers")  # each machine may have its own disk and its own number of cores


def check_same(config: RunConfig, parts: Sequence[tuple[str, str | None]], processes: Processes) -> None:
    """Every process must have the same configuration and the same parts.

    Args:
        parts: (what it is, its hash), in an order that is the same on every process.

    Raises:
        UserError: on every process, naming what differs from the main process, and where.
    """
    own = {"configuration": flatten(config.model_dump(mode="json"), "."), "parts": [sha256 for _, sha256 in parts]}
    main = processes.from_main(lambda: own)
    differing = [words for (words, sha256), expected in zip(parts, main["parts"], strict=True) if sha256 != expected]
    differing += [
        f"{key}: {main['configuration'].get(key)!r} -> {value!r}"
        for key, value in json.loads(json.dumps(own["configuration"])).items()
        if key not in OWN_KEYS and main["configuration"].get(key) != value
    ]
    lines = "\n  ".join(differing)
    found = f"process {processes.rank} on machine {socket.gethostname()} has another job than the main process:\n  {lines}"
    processes.raise_together(f"{found}\nGive every machine the same files and the same command" if differing else "")


CHUNK_BYTES = 1 << 26


class SharedFolder:
    """A folder of the main process, which exists.

    Attributes:
        everywhere: whether every process sees it.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._processes = processes
        self._token = str(processes.from_main(lambda: secrets.token_hex(8)))
        probe = folder / f".seen-{self._token}"
        if processes.is_main:
            probe.touch()
        processes.barrier()
        self._sees = probe.exists()
        self.everywhere = processes.is_on_all(self._sees)
        if processes.is_main:
            probe.unlink()
        # One copy per machine, written by its first process; of a name that its others can work out, too.
        self._copies = Path(tempfile.gettempdir()) / f"siglip-tuner-{self._token}"
        self._writes = not self._sees and int(os.environ.get("LOCAL_RANK", "0")) == 0

    def bring(self, folder: Path) -> Path:
        """Where this process reads a folder that the main process has: the folder itself, or a copy that lasts as long as the process.

        Call on every process.

        Raises:
            OSError: there is no room for a copy.
        """
        if self.everywhere:
            self._processes.barrier()  # it is written before anyone reads
            return folder
        copy = self._copies / folder.name
        if self._writes:
            atexit.register(shutil.rmtree, self._copies, ignore_errors=True)
            shutil.rmtree(copy, ignore_errors=True)
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) if self._processes.is_main else []
        sizes = {name: (folder / name).stat().st_size for name in names}
        for name, size in self._processes.from_main(lambda: sizes).items():
            self._send(folder / name, copy / name, size)
        self._processes.barrier()  # nobody reads half of it
        return folder if self._sees else copy

    def drop(self, brought: Path) -> None:
        """Remove a copy that is no longer needed; the folder itself is left alone. Call on every process."""
        self._processes.barrier()
        if self._writes and brought.parent == self._copies:
            shutil.rmtree(brought, ignore_errors=True)

    def _send(self, source: Path, target: Path, size: int) -> None:
        """One file from the main process, a piece at a time."""
        if self._writes:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        for start in range(0, size, CHUNK_BYTES):
            piece = np.zeros(min(CHUNK_BYTES, size - start), dtype=np.uint8)
            if self._processes.is_main:
                piece = np.fromfile(source, dtype=np.uint8, count=len(piece), offset=start)
            self._processes.broadcast(piece)
            if self._writes:
                with naming(target, num_bytes=size), target.open("ab") as file:
                    file.write(piece.tobytes())

"""Asked to stop: SIGTERM and SIGINT set a flag, which the loop heeds at the next step on every process at once."""

import signal
import socket
import threading
from types import FrameType

import torch.distributed as dist

from eval.errors import CommandError


class Stopped(CommandError):
    """The run was told to stop and has written a checkpoint; carries the exit code (143 for SIGTERM, 130 for SIGINT)."""

    label = "stopped"
    is_shared = True

    def __init__(self, exit_code: int, step: int) -> None:
        super().__init__(f"stopped after step {step}; the same command goes on from there")
        self.exit_code = exit_code


class ProcessesLost(CommandError):
    """The other processes do not answer: their machine, their launcher or the network is gone. Exit code 1, said by every process left."""

    shows_traceback = True

    def __init__(self, rank: int, cause: str) -> None:
        super().__init__(
            f"process {rank} on machine {socket.gethostname()} lost the other processes ({cause}). If one of them says why it ended, "
            "that is the reason. What was committed is whole; the same command on every machine goes on from there (docs/multi-node.md)"
        )


def is_loss_of_processes(error: RuntimeError) -> bool:
    """Whether an error is torch.distributed's word for processes that are gone or do not answer in time."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class StopSignals:
    """Catches the signals while it is entered. A second SIGINT interrupts at once, as Python does by itself."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        # Handlers can be set in the main thread alone; elsewhere (a test that runs a job in a thread) there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    @property
    def asked(self) -> bool:
        """True once a signal came."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What the shell calls an end by this signal; a process that stops because another was asked says 143."""
        return 128 + (self.received or signal.SIGTERM)

"""What every command has in common: silence the libraries, do the work, and turn its end into one line and an exit code.

Exit codes: 0 done · 2 bad arguments or data · 4 could not read or write a file · 5 not finite · 6 out of memory · 130 stopped by Ctrl-C ·
141 whoever read what it prints has left · 143 stopped by SIGTERM, SIGHUP or SIGUSR1; train/ adds its own.
"""

import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from eval.atomic import check_writable, claimed
from eval.dataset.picture_warnings import said_once
from eval.errors import CommandError, Interrupted, WriteError, as_os_error, needing_memory, remedy_of, writing
from eval.signals import Interruption, StopSignals, exit_code_of

if TYPE_CHECKING:
    import torch

    from eval.processes import Processes


MEMORY_REMEDY = (
    "Free what others use of it (nvidia-smi and free say how much), lower the number of processes that decode pictures (--num-workers, "
    "data.num_workers), or take a smaller model or more memory; the same command goes on or begins again"
)


def run_command(work: Callable[[], int | None], *, writes: Sequence[Path] = (), loads_models: bool = True) -> int:
    """Do a command's work; returns its exit code, having printed why when it is not 0. Anything unexpected keeps its traceback.

    Args:
        work: returns an exit code, or None for 0.
        writes: files and folders that the work replaces, claimed until it ends; of a set of files one will do.
        loads_models: false for a command that loads none: it need not wait for the libraries to be imported and silenced.
    """
    try:
        with StopSignals(raises=True), said_once():
            if loads_models:
                silence()
            with _claimed(writes), needing_memory(MEMORY_REMEDY):
                code = work() or 0
            sys.stdout.flush()  # a reader that has left is noticed here, and not where Python ends
            return code
    except CommandError as error:
        return _end(error)
    except KeyboardInterrupt as error:
        found = error if isinstance(error, Interruption) else Interruption(signal.SIGINT)
        return _end(Interrupted(str(found), exit_code_of(found.number)))
    except (OSError, SafetensorError) as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 128 + signal.SIGPIPE
        os_error = as_os_error(error)
        if os_error is None:
            raise
        remedy = f"What was written before is whole; {remedy_of(os_error).lower()} and run the same command again"
        return _end(WriteError(f"could not write (or read): {os_error}. {remedy}"))


@contextmanager
def _claimed(writes: Sequence[Path]) -> Iterator[None]:
    """Claim what a command writes, so that what cannot be written is refused before the work.

    Raises:
        TakenError: another process is writing it.
        WriteError: it cannot be written.
    """
    with ExitStack() as claims:
        for path in writes:
            with writing(path):
                claims.enter_context(claimed(path))
        yield


def run_evaluation(work: "Callable[[Processes, torch.device], Any]", *, writes: Sequence[Path]) -> int:
    """Do the work of a command that several processes share, on this one; returns the exit code, and claims, as `run_command`.

    Args:
        writes: files, written by the main process.
    """
    from eval.process_group import joined_processes

    def joined() -> None:
        with joined_processes() as (processes, device), ExitStack() as claims:
            with processes.jointly():
                if processes.is_main:
                    claims.enter_context(_claimed(writes))
                    check_writable(*writes)
            work(processes, device)

    return run_command(joined)


def silence() -> None:
    """Silence the notices and progress bars of transformers, and Python's warning of forks next to threads."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")  # workers touch no thread of their parent's


def _reader_left() -> bool:
    """Whether nobody reads what is printed any more, as after `| head`; nothing is printed from then on, so that Python ends quietly."""
    left = False
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                left = True
        except (OSError, ValueError):  # a stream without a file
            continue
    return left


def _end(error: CommandError) -> int:
    """Print an error on the main process, and on another where it alone met it; returns its exit code."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(f"{error.label}: {error}", file=sys.stderr, flush=True)
    elif not error.is_shared:
        print(f"{error.label} on process {rank}, machine {socket.gethostname()}: {error}", file=sys.stderr, flush=True)
    return error.exit_code

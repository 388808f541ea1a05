"""What every command has in common: silence the libraries, do the work, and turn its end into one line and an exit code.

Exit codes: 0 done · 2 bad arguments or data · 4 could not read or write a file · 130 stopped by Ctrl-C · 143 by SIGTERM, SIGHUP or SIGUSR1;
train/ adds its own.
"""

import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from eval.errors import CommandError, Interrupted, WriteError, as_os_error
from eval.signals import Interruption, StopSignals, exit_code_of

if TYPE_CHECKING:
    import torch

    from eval.processes import Processes


def run_command(work: Callable[[], int | None], *, loads_models: bool = True) -> int:
    """Do a command's work; returns its exit code, having printed why when it is not 0. Anything unexpected keeps its traceback.

    Args:
        work: returns an exit code, or None for 0.
        loads_models: false for a command that loads none: it need not wait for the libraries to be imported and silenced.
    """
    try:
        with StopSignals(raises=True):
            if loads_models:
                silence()
            return work() or 0
    except CommandError as error:
        return _end(error)
    except KeyboardInterrupt as error:
        found = error if isinstance(error, Interruption) else Interruption(signal.SIGINT)
        return _end(Interrupted(str(found), exit_code_of(found.number)))
    except (OSError, SafetensorError) as error:
        os_error = as_os_error(error)
        if os_error is None:
            raise
        remedy = "What was written before is whole; make room and run the same command again"
        return _end(WriteError(f"could not write (or read): {os_error}. {remedy}"))


def run_evaluation(work: "Callable[[Processes, torch.device], Any]") -> int:
    """Do the work of a command that several processes share, on this one; returns the exit code as `run_command`."""
    from eval.process_group import joined_processes

    def joined() -> None:
        with joined_processes() as (processes, device):
            work(processes, device)

    return run_command(joined)


def silence() -> None:
    """Silence the notices and progress bars of transformers, and Python's warning of forks next to threads."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")  # workers touch no thread of their parent's


def _end(error: CommandError) -> int:
    """Print an error on the main process, and on another where it alone met it; returns its exit code."""
    if error.shows_traceback:
        traceback.print_exception(error)
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(f"{error.label}: {error}", file=sys.stderr, flush=True)
    elif not error.is_shared:
        print(f"{error.label} on process {rank}, machine {socket.gethostname()}: {error}", file=sys.stderr, flush=True)
    return error.exit_code

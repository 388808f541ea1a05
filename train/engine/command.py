"""A command that carries out a run: claim the folder, go through the loop, finish; every end has its exit code and its words."""

import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from eval.errors import UserError


class Kind(Protocol):
    """What a kind of run adds: how it starts, what it goes through, how it ends."""

    @property
    def config(self) -> Any:
        """The configuration, a `train.config.run.RunConfig`."""

    def start(self) -> tuple[Any, Any]:
        """Accelerator and processes."""

    def is_finished(self) -> bool:
        """Whether the run is through."""

    def show_finished(self) -> None:
        """Print the figures of a run that is."""

    def begin(self, accelerator: Any, processes: Any, signals: Any) -> Any:
        """Data, model and optimizer are read; the loop, a `train.engine.loop.BaseLoop`."""

    def finish(self, loop: Any, state: Any) -> None:
        """Export, evaluate, report."""


def carry_out(kind: Kind) -> int:
    """Go through a run, from where it stands to its end; returns 0. Call on every process."""
    from train.engine.folder import claim_folder
    from train.engine.loop import BaseLoop, ProcessesLost, Stopped, StopSignals, is_loss_of_processes

    config = kind.config
    with StopSignals() as signals:
        accelerator, processes = kind.start()
        lock = processes.together(lambda: claim_folder(config) if processes.is_main else None)
        try:
            if processes.from_main(kind.is_finished):
                if processes.is_main:
                    print(f"{config.run_folder} is finished:")
                    kind.show_finished()
                return 0
            loop: BaseLoop | None = None
            try:
                loop = kind.begin(accelerator, processes, signals)
                kind.finish(loop, loop.run())
            except RuntimeError as error:
                # The main process was told to stop and has left, while this one, told the same, waited for it.
                if signals.asked and not processes.is_main:
                    raise Stopped(signals.exit_code, loop.state.step if loop is not None else 0) from error
                if is_loss_of_processes(error):
                    raise ProcessesLost(processes.rank, str(error).splitlines()[0]) from error
                raise
            return 0
        finally:
            if lock is not None:
                lock.close()


def exit_code_of(action: Callable[[], int]) -> int:
    """The exit code of an action, having said why when it is not 0."""
    from train.engine.loop import ProcessesLost, Stopped
    from train.optim.update import NotFinite

    try:
        return action()
    except UserError as error:
        return _say(str(error), error.exit_code, is_shared=error.is_shared)
    except NotFinite as error:
        return _say(str(error), error.exit_code)
    except Stopped as error:
        return _say(str(error), error.exit_code, "stopped")
    except ProcessesLost as error:
        traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return _say("interrupted", 130, "stopped")
    except OSError as error:
        traceback.print_exc()
        words = f"could not write (or read): {error}. What was committed before is whole; make room and run the same command again"
        return _say(words, 4, is_shared=False)


def _say(message: str, code: int, word: str = "error", *, is_shared: bool = True) -> int:
    """Print why and return the code: on the main process, and on another where it alone met it."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        print(f"{word}: {message}", file=sys.stderr, flush=True)
    elif not is_shared:
        print(f"{word} on process {rank}, machine {socket.gethostname()}: {message}", file=sys.stderr, flush=True)
    return code


def end_with(run: Callable[[list[str]], int]) -> None:
    """Run, leave the exit code where launch.sh finds it (accelerate turns every code into 1), and exit."""
    code = 1
    try:
        code = run(sys.argv[1:])
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 2
    finally:
        prefix = os.environ.get("TRAIN_EXIT_FILE")
        if prefix:
            path = Path(f"{prefix}.{os.environ.get('RANK', '0')}")
            path.write_text(f"{code}\n", encoding="utf-8")
    _end_processes()
    sys.exit(code)


def _end_processes() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def silence() -> None:
    """Silence transformers' notices and bars, and Python's word on forking beside threads."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")  # workers touch no thread of their parent's

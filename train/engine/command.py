"""A command that carries out a run: claim the folder, go through the loop, finish, and leave the exit code for the launcher."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.signals import StopSignals, exit_code_of


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """What a kind of run does at each stage, given its configuration, a `train.config.run.RunConfig`.

    Attributes:
        start: accelerator and processes.
        is_finished: whether the run has ended with all that it was to make.
        show_finished: prints the figures of a finished run.
        reports: folders of the reports it ends with.
        load: reads the data; its splits.
        prepare: model and optimizer; the job, a `train.engine.run.Run`. Given the splits, accelerator and processes too.
        loop: the `train.engine.loop.BaseLoop` of a job and signals.
        finish: exports, evaluates and reports. Given the job, the last state, and what is to be called between rows.
    """

    start: Callable[[Any], tuple[Any, Any]]
    is_finished: Callable[[Any], bool]
    show_finished: Callable[[Any], None]
    reports: Callable[[Any], list[Path]]
    load: Callable[[Any], Any]
    prepare: Callable[[Any, Any, Any, Any], Any]
    loop: Callable[[Any, Any], Any]
    finish: Callable[[Any, Any, Callable[[], None]], None]


def run_parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a command that takes a configuration and values that replace some of it; parse with `parse_intermixed_args`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("config", metavar="CONFIG.yaml", help=f"YAML file, e.g. configs/{example}")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key.path=value", help="values that replace those of the file")
    return parser


def carry_out(make_kind: Callable[[], RunKind], config: Any) -> None:
    """Go through a run, from the step it has reached to its end. Call on every process.

    Args:
        make_kind: imports what the run needs; a signal that comes meanwhile stops the run as a later one would.

    Raises:
        CommandError, OSError: the run cannot go on.
    """
    from train.engine.folder import check_outputs, claim_folder

    with StopSignals() as signals:
        signals.last_words = lambda: _last_words(config)
        from train.engine.loop import ProcessesLost, is_loss_of_processes

        kind = make_kind()
        accelerator, processes = kind.start(config)
        lock = processes.together(lambda: claim_folder(config) if processes.is_main else None)
        try:
            if processes.from_main(lambda: kind.is_finished(config)):
                processes.together(lambda: _check_finished(kind, config) if processes.is_main else None)
                if processes.is_main:
                    print(f"{config.run_folder} is finished:")
                    kind.show_finished(config)
                return
            processes.together(lambda: check_outputs(config, kind.reports(config)) if processes.is_main else None)
            try:
                splits = processes.together(lambda: kind.load(config))
                loop = kind.loop(kind.prepare(config, splits, accelerator, processes), signals)
                kind.finish(loop.job, loop.run(), loop.leave_final_if_asked)
            except RuntimeError as error:
                if is_loss_of_processes(error):
                    raise ProcessesLost(processes.rank, str(error).splitlines()[0]) from error
                raise
        finally:
            if lock is not None:
                lock.close()


def _check_finished(kind: RunKind, config: Any) -> None:
    """Refuse to show the figures of a finished run whose files are damaged, or whose data have changed.

    Raises:
        UserError: naming what differs.
    """
    from train.data.data_record import FILE, check_data
    from train.engine.folder import check_ended, report_folder

    check_ended(config)
    record = config.run_folder / FILE
    if not record.exists():
        return
    try:
        check_data(record, kind.load(config), config.data.source)
    except UserError as error:
        raise UserError(
            f"{config.run_folder} is finished, and its figures ({report_folder(config)}) are not of these data: {error}"
        ) from error


def _last_words(config: Any) -> str:
    """What a second Ctrl-C says, which ends the process before the checkpoint that the first asked for."""
    from train.engine.checkpoint import Checkpoints

    leave_exit_code(exit_code_of(signal.SIGINT))
    checkpoints = Checkpoints(config.run_folder / "checkpoints")
    steps = checkpoints.steps()
    if not steps:
        return "at once, by a second Ctrl-C; no checkpoint was written yet"
    return f"at once, by a second Ctrl-C; the same command goes on from the newest checkpoint, {checkpoints.path(steps[-1])}"


def leave_exit_code(code: int) -> None:
    """Write the exit code where launch.sh finds it: accelerate turns every code into 1."""
    prefix = os.environ.get("TRAIN_EXIT_FILE")
    if prefix:
        try:
            Path(f"{prefix}.{os.environ.get('RANK', '0')}").write_text(f"{code}\n", encoding="utf-8")
        except OSError as error:
            print(f"error: the exit code {code} could not be left for the launcher: {error}", file=sys.stderr, flush=True)


def end_with(run: Callable[[list[str]], int]) -> None:
    """Run, leave the exit code where launch.sh finds it, and exit."""
    code = 1
    try:
        code = run(sys.argv[1:])
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 2
    finally:
        leave_exit_code(code)
    dist = sys.modules.get("torch.distributed")  # not imported where the command ended before
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)

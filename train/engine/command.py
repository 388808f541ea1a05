"""A command that carries out a run: claim the folder, go through the loop, finish, and leave the exit code for the launcher."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from eval.command_line import CommandParser
from eval.errors import UserError
from eval.files import command_line
from eval.progress import in_words, logged_to, say
from eval.signals import StopSignals, exit_code_of

if TYPE_CHECKING:
    from train.config.run import RunConfig

ConfigType = TypeVar("ConfigType", bound="RunConfig")


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """What a kind of run does at each stage, given its configuration, a `train.config.run.RunConfig`.

    Attributes:
        start: accelerator and processes.
        is_finished: whether the run has ended with all that it was to make.
        show_finished: prints the figures of a finished run.
        reports: folders of the reports it ends with.
        load: reads the data; its splits.
        check: refuses sizes that the splits do not suffice for, once both are known.
        prepare: model and optimizer; the job, a `train.engine.run.Run`. Given the splits, accelerator and processes too.
        loop: the `train.engine.loop.BaseLoop` of a job and signals.
        finish: exports, evaluates and reports. Given the job, the last state, and what is to be called between rows.
    """

    start: Callable[[Any], tuple[Any, Any]]
    is_finished: Callable[[Any], bool]
    show_finished: Callable[[Any], None]
    reports: Callable[[Any], list[Path]]
    load: Callable[[Any], Any]
    check: Callable[[Any, Any], None]
    prepare: Callable[[Any, Any, Any, Any], Any]
    loop: Callable[[Any, Any], Any]
    finish: Callable[[Any, Any, Callable[[], None]], None]


class _RunParser(CommandParser):
    """A parser that knows the keys of a configuration, which other programs take as options."""

    def error(self, message: str) -> NoReturn:
        """As of argparse; an unknown option that is a key, or near one, is told with it."""
        if "unrecognized arguments:" in message:
            from train.config.job import JobConfig
            from train.config.nearest_key import nearest_key
            from train.config.reranker import RerankerConfig

            kind = RerankerConfig if "reranker" in self.prog else JobConfig
            options = [word.lstrip("-").partition("=")[0].replace("-", "_") for word in message.split() if word.startswith("--")]
            near = [key for option in options if (key := nearest_key(kind, (option,)))]
            message += f"; settings are given as key=value: did you mean {' and '.join(f'{key}=...' for key in near)}?" if near else ""
        super().error(message)


def run_parser(module: str, description: str, example: str, *, is_needed: bool = True) -> CommandParser:
    """The parser of a command that takes a configuration and values that replace some of it; parse with `parse_intermixed_args`.

    Args:
        is_needed: false where options can take the configuration's place.
    """
    parser = _RunParser(module, description, example)
    data = "" if "reranker" in module else "; or a data set (file, folder or hub id), which is tuned as configs/small.yaml says"
    text = f"YAML file; its keys: docs/configuration.md{data}"
    parser.add_argument("config", nargs=None if is_needed else "?", metavar="CONFIG.yaml", help=text)
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key.path=value",
        help="values, in YAML, that replace those of the file (default: those of the file)",
    )
    return parser


def add_looks(parser: CommandParser) -> None:
    """Give a command the options that look at a run and train nothing."""
    parser.add_argument("--show-config", action="store_true", help="print every key with its value, and stop (default: train)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="read data and models, try the largest step, print configuration, plan, time, memory and disk, and leave nothing "
        "(default: train)",
    )


def asked_config(kind: type[ConfigType], asked: argparse.Namespace) -> ConfigType:
    """The configuration that the arguments ask for.

    Raises:
        UserError: it cannot be run; with what is wrong with the data and models that it names.
    """
    from train.config.load import ConfigError, load_run_config, read_record

    record = read_record(asked.config, asked.overrides)
    try:
        return load_run_config(kind, asked.config, asked.overrides)
    except ConfigError as error:
        from train.data.inputs import with_other_faults

        raise with_other_faults(error, record, with_data=True) from error


@contextmanager
def naming_all_inputs(config: RunConfig) -> Iterator[None]:
    """Make an error of the data, or of what is built on them, one that names what is wrong with the other inputs too.

    Raises:
        UserError: in place of one that names one input alone.
    """
    try:
        yield
    except UserError as error:
        from train.data.inputs import with_other_faults

        raise with_other_faults(error, config.model_dump(mode="json"), with_data=False) from error


def carry_out_as_asked(make_kind: Callable[[], RunKind], config: RunConfig, asked: argparse.Namespace) -> None:
    """Go through a run, or only show its configuration or its plan. Call on every process.

    Raises:
        CommandError, OSError: it cannot be done.
    """
    if asked.show_config:
        show_config(make_kind, config)
    elif asked.dry_run:
        plan(make_kind, config)
    else:
        carry_out(make_kind, config)


def show_config(make_kind: Callable[[], RunKind], config: RunConfig) -> None:
    """Print every key with its value; the data are read where values follow from them.

    Raises:
        UserError: data or configuration cannot be used.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    if config.is_open:
        from train.engine.resolve import resolved

        kind = make_kind()
        with naming_all_inputs(config):
            splits = kind.load(config)
            config = resolved(config, splits)
            kind.check(config, splits)
    print_config(config)


def print_config(config: RunConfig) -> None:
    """Print a configuration as YAML, after a comment that says which keys follow from the data."""
    import yaml

    for key, value in config.from_data.items():
        print(f"# from the data: {key}={value}")
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="", flush=True)


def plan(make_kind: Callable[[], RunKind], config: RunConfig) -> None:
    """Go through a run up to its first step, in a temporary folder, and print its configuration and what it will cost.

    Raises:
        CommandError, OSError: the run could not be carried out.
    """
    from eval.execution import no_progress
    from train.engine.dry_run import elsewhere, measure_step, plan_lines
    from train.engine.evaluated_pictures import check_evaluated
    from train.engine.folder import check_continues, claim_folder
    from train.engine.resolve import resolve

    kind = make_kind()
    accelerator, processes = kind.start(config)
    with naming_all_inputs(config):
        config, splits = resolve(config, processes, kind.load, kind.check)
        splits = splits or processes.together(lambda: kind.load(config))
    processes.together(lambda: check_continues(config) if processes.is_main else None)
    with elsewhere(config, processes) as (tried, folder):
        lock = processes.together(lambda: claim_folder(tried) if processes.is_main else None)
        with naming_all_inputs(config):
            job = kind.prepare(tried, splits, accelerator, processes)
        checked = check_evaluated(job, no_progress)
        loop = kind.loop(job, StopSignals())
        cost = measure_step(loop, job)
        if processes.is_main:
            print_config(config)
            lines = [*job.describe(), *checked, *plan_lines(loop, job, cost, Path(config.runs_folder))]
            print("\n".join(lines).replace(str(folder), config.runs_folder))
            print(f"Nothing was trained. The same command without --dry-run begins, or goes on, in {config.run_folder}", flush=True)
        if lock is not None:
            lock.close()


def carry_out(make_kind: Callable[[], RunKind], config: Any) -> None:
    """Go through a run, from the step it has reached to its end. Call on every process.

    Args:
        make_kind: imports what the run needs; a signal that comes meanwhile stops the run as a later one would.

    Raises:
        CommandError, OSError: the run cannot go on.
    """
    from train.engine.folder import LOG, check_outputs, claim_folder
    from train.launch.environment import software

    started = time.monotonic()
    with StopSignals() as signals, ExitStack() as logs:
        signals.last_words = lambda: _last_words(config)
        from train.engine.loop import ProcessesLost, is_loss_of_processes
        from train.engine.resolve import resolve

        kind = make_kind()
        accelerator, processes = kind.start(config)
        with naming_all_inputs(config):
            config, splits = resolve(config, processes, kind.load, kind.check)
        lock = processes.together(lambda: claim_folder(config) if processes.is_main else None)
        try:
            if processes.from_main(lambda: kind.is_finished(config)):
                processes.together(lambda: _check_finished(kind, config, splits) if processes.is_main else None)
                if processes.is_main:
                    print(f"{config.run_folder} is finished:")
                    kind.show_finished(config)
                return
            processes.together(lambda: check_outputs(config, kind.reports(config)) if processes.is_main else None)
            if processes.is_main:
                logs.enter_context(logged_to(config.run_folder / LOG))
                say(f"run       {config.run_folder}: {software()}")
            try:
                with naming_all_inputs(config):
                    splits = splits or processes.together(lambda: kind.load(config))
                    job = kind.prepare(config, splits, accelerator, processes)
                loop = kind.loop(job, signals)
                try:
                    kind.finish(loop.job, loop.run(), loop.leave_unsaved_if_asked)
                    if processes.is_main:
                        loop.track_end(_final_record(config))
                        said = f"; what was said: {config.run_folder}/{LOG}, numbers: {config.run_folder}/metrics.jsonl"
                        say(f"took      {in_words(time.monotonic() - started)}{said}")
                        kind.show_finished(config)
                finally:
                    loop.close_trackers()
            except RuntimeError as error:
                if is_loss_of_processes(error):
                    raise ProcessesLost(processes.rank, str(error).splitlines()[0]) from error
                raise
        finally:
            if lock is not None:
                lock.close()


def _final_record(config: Any) -> Any:
    """The record of the final report; None: no split was there for it."""
    from eval.report.report import read_report
    from train.engine.folder import report_folder

    folder = report_folder(config)
    return read_report(folder) if (folder / "report.json").is_file() else None


def _check_finished(kind: RunKind, config: Any, splits: Any) -> None:
    """Refuse to show the figures of a finished run whose files are damaged, or whose data have changed.

    Args:
        splits: its data, where they were read already.

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
        check_data(record, splits or kind.load(config), config.data.source)
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
        code = run(command_line())
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 2
    finally:
        leave_exit_code(code)
    dist = sys.modules.get("torch.distributed")  # not imported where the command ended before
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)

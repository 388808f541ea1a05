"""python -m train.launch.runs [FOLDER ...]: every run, its state and its figures, one a line; nothing heavy is imported."""

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from eval.command import run_command
from eval.command_line import CommandParser
from eval.errors import UserError
from eval.files import command_line
from train.config.yaml_text import YamlFault, parse_yaml


@dataclass(frozen=True)
class Listed:
    """A run in words: R@1 is the mean of both directions, in percent; on val the best so far, on test that of the first stage that the
    report compares, with its difference and verdict."""

    run: str
    state: str
    val: str = "-"
    test: str = "-"
    gain: str = "-"


HEADER = Listed("run", "state", "val R@1", "test R@1", "gain")


def make_parser() -> CommandParser:
    """The options."""
    parser = CommandParser("train.launch.runs", "List the runs of folders: state, mean R@1 on val and test, gain.", "runs runs")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folders of runs, or runs (default: runs)")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    return run_command(lambda: run(asked), loads_models=False)


def run(asked: argparse.Namespace) -> None:
    """Print a line of each run.

    Raises:
        UserError: a folder is not there, or holds no run.
    """
    found = [listed(run, folder) for folder in asked.folders or [Path("runs")] for run in runs_of(folder)]
    for line in in_columns([HEADER, *found]):
        print(line)


def runs_of(folder: Path) -> list[Path]:
    """The runs in a folder, however deep below it (a study's are in its own), by name; or the folder itself, if it is one.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a folder of runs")
    found = sorted(path.parent for path in folder.rglob("config.yaml") if _is_run(path.parent))
    if not found:
        raise UserError(f"{folder} holds no run: no folder in it has a config.yaml with checkpoints or a finished.json next to it")
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or (folder / "finished.json").is_file()


def listed(run: Path, folder: Path) -> Listed:
    """A run's line; what cannot be read is left out of it.

    Args:
        folder: what its name is seen from.
    """
    name = str(run.relative_to(folder)) if run != folder else run.name
    val = max(
        (line["mean_R@1"] for line in _lines(run / "metrics.jsonl") if line.get("event") == "eval" and "mean_R@1" in line), default=None
    )
    test = gain = "-"
    reports = sorted(run.glob("eval/*/report.json"))
    with suppress(OSError, ValueError, KeyError, StopIteration):
        record = json.loads(reports[0].read_text(encoding="utf-8")) if reports else {"comparisons": []}
        row = next(row for row in record["comparisons"] if (row["direction"], row["metric"]) == ("both", "R@1"))
        figures = record["stages"][row["stage"]]
        test = f"{50 * (figures['image_to_text']['R@1'] + figures['text_to_image']['R@1']):.1f}"
        gain = f"{100 * row['delta']:+.1f} {row['verdict']}"
    return Listed(name, state_of(run), "-" if val is None else f"{100 * val:.1f}", test, gain)


def state_of(run: Path) -> str:
    """finished, running, or stopped, with the steps taken and asked for."""
    steps = [int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*") if path.name.removeprefix("step-").isdecimal()]
    asked: Any = {}
    with suppress(OSError, UnicodeDecodeError, YamlFault):
        asked = parse_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    train = asked.get("train") if isinstance(asked, dict) else None
    total = train.get("max_steps") if isinstance(train, dict) else None
    place = f"step {max(steps, default=0)}" + (f" of {total}" if total is not None else "")
    if is_locked(run / ".lock"):
        return f"running, {place}"
    return "finished" if (run / "finished.json").is_file() else f"stopped at {place}"


def is_locked(lock: Path) -> bool:
    """Whether a job holds this lock of a run's folder."""
    try:
        with lock.open(encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def in_columns(rows: Sequence[Listed]) -> Iterator[str]:
    """Rows as lines, their cells one below the other."""
    cells = [astuple(row) for row in rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main(command_line()))

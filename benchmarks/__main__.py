"""Every side-by-side measurement of speed: ours now, ours at an earlier commit, and the peers, in turns.

    python -m benchmarks --list
    python -m benchmarks --before COMMIT --write           all rows; about 25 minutes on two cores; rewrites results/speed.md
    python -m benchmarks --before COMMIT --quick           the quick ones in one round less; about 8 minutes
    python -m benchmarks search evaluation --rounds 5      two rows, beside their peers alone

COMMIT is checked out with `git worktree` into a temporary folder, which gets this folder's benchmarks/, and is removed afterwards. Each
measurement is a process of its own, without a GPU (benchmarks/gpu.py is for those). Peers are optional; a missing one is named with its
remedy. Exit code 1: a row is slower than before, beyond the spread of the rounds, or did not run.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.conclusion import INDEX
from benchmarks.speed.rows import ROWS, Row
from benchmarks.speed.table import BEFORE, OURS, QUIET, Measured, conclusion, page, table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "results" / "speed.md"
_LIMIT_SECONDS = 600


def main(arguments: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments, rows)
    if asked.list:
        for row in rows:
            print(f"{row.name:14} {row.what}; beside {', '.join(peer.name for peer in row.peers) or 'none but before'}")
        return 0
    chosen = [row for row in rows if row.name in asked.row or (not asked.row and (row.is_quick or not asked.quick))]
    began, command = time.monotonic(), "python -m benchmarks " + " ".join(sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, earlier(asked.before) as tree:
        trees = {OURS: ROOT} | ({} if tree is None else {BEFORE: tree})
        looked = [run_child("machine", OURS, Path(folder), ROOT)]
        found = [measured_row(row, trees, Path(folder), asked.rounds or (2 if asked.quick else 3)) for row in chosen]
        looked.append(run_child("machine", OURS, Path(folder), ROOT))
    both = [one for one, _ in looked if one]
    rates = {name: max(one[name] for one in both) for name in both[0]} if both else {}
    print("\n" + "\n".join(table(found, rates)) + "\n")
    for measured in found:
        for note in measured.notes:
            print(f"{measured.row.name}: {note}")
        for name in measured.row.pages:
            print(f"{measured.row.name}: results/{name}.md has more, by a command of its own, which it states")
    falls = [measured.row.name for measured in found if measured.is_fall]
    print(f"SLOWER than at {asked.before}, beyond the spread: {', '.join(falls)}" if falls else conclusion(found, asked.before))
    if busy := [measured.row.name for measured in found if measured.is_disturbed]:
        print(f"other work took more than {QUIET:g} of a core meanwhile: measure again alone: {', '.join(busy)}")
    print(f"took {(time.monotonic() - began) / 60:.1f} min")
    if asked.write:
        write(found, rates, command, asked.before)
    return 1 if falls or any(measured.failed for measured in found) else 0


def parse(arguments: Sequence[str] | None, rows: Sequence[Row]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="*", metavar="ROW", help="rows to run (default: all); --list names them")
    parser.add_argument("--before", metavar="COMMIT", help="an earlier commit to measure next to this tree")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="leave out the rows that take minutes")
    parser.add_argument("--write", action="store_true", help="rewrite results/speed.md with what was run, and its line in its index")
    parser.add_argument("--list", action="store_true", help="name the rows, and stop")
    asked = parser.parse_args(arguments)
    if unknown := sorted({*asked.row} - {row.name for row in rows}):
        parser.error(f"unknown rows: {', '.join(unknown)}; --list names those there are")
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, found {asked.rounds}")
    return asked


@contextmanager
def earlier(commit: str | None) -> Iterator[Path | None]:
    """An earlier commit as a folder of files, with this tree's benchmarks/ in it; None without a commit.

    Raises:
        SystemExit: there is no such commit.
    """
    if commit is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-before-"))
    tree = folder / "tree"
    added = subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        if added.returncode:
            raise SystemExit(f"--before {commit}: {added.stderr.strip()}")
        shutil.rmtree(tree / "benchmarks")
        shutil.copytree(ROOT / "benchmarks", tree / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def measured_row(row: Row, trees: dict[str, Path], place: Path, rounds: int) -> Measured:
    """All rounds of a row; the order of the systems is turned round from round to round, so that no system is always first. The last round
    is without the peers, which do not change: what is asked is whether ours did."""
    found, rounds = Measured(row), min(rounds, row.most_rounds)
    systems = [*trees, *(peer.name for peer in row.peers if peer.is_there)]
    found.notes += [f"{peer.name} is not installed: {peer.remedy}" for peer in row.peers if not peer.is_there]
    _, fault = run_child(row.name, OURS, place, ROOT, "--prepare")
    if fault:
        found.notes.append(f"its data could not be made: {fault}")
        return found
    for number in range(rounds):
        in_turn = list(trees) if number and number == rounds - 1 else systems
        for system in in_turn if number % 2 == 0 else in_turn[::-1]:
            tree, name = (trees[system], OURS) if system in trees else (ROOT, system)
            before, began = busy_seconds(), time.monotonic()
            result, fault = run_child(row.name, name, place, tree)
            own = result.pop("processor") if result else 0.0
            found.others.append(max(0.0, (busy_seconds() - before - own) / (time.monotonic() - began)))
            found.rounds.setdefault(system, []).append(result)
            if fault:
                found.notes.append(f"round {number + 1}, {system} did not run: {fault}")
            shown = f"{result['seconds']:.2f} s" if result else "did not run"
            print(f"{time.strftime('%X')} {row.name}, round {number + 1} of {rounds}, {system}: {shown}", flush=True)
    return found


def run_child(row: str, system: str, place: Path, tree: Path, *options: str) -> tuple[dict[str, Any] | None, str]:
    """(what one measurement gave, with "processor", its own seconds of a processor; the fault). One of them is empty."""
    environment = os.environ | {"PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment["HF_ASSETS_CACHE"] = str(place / f"assets-{time.monotonic_ns()}")  # no measurement finds what another one cached
    words = [sys.executable, "-m", "benchmarks.speed.measure", row, system, str(place), *options]
    before = os.times()
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=tree, env=environment, start_new_session=True, **piped) as child:
        try:
            said, errors = child.communicate(timeout=_LIMIT_SECONDS)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)  # with what it started itself
            if isinstance(error, subprocess.TimeoutExpired):
                return None, f"it took more than {_LIMIT_SECONDS} s"
            raise
    after = os.times()
    if child.returncode:
        lines = [line for line in errors.splitlines() if line.strip()] or [f"exit code {child.returncode}"]
        return None, lines[-1][:300]
    if "--prepare" in options:
        return None, ""
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(said.splitlines()[-1]) | ({} if row == "machine" else {"processor": processor}), ""


def busy_seconds() -> float:
    """Seconds that the processors of this machine worked since it started; 0 where the system does not say."""
    try:
        user, nice, system = (int(word) for word in Path("/proc/stat").read_text().split()[1:4])
    except OSError:
        return 0.0
    return (user + nice + system) / float(os.sysconf("SC_CLK_TCK"))


def write(found: list[Measured], rates: dict[str, float], command: str, before: str | None) -> None:
    """results/speed.md, and its conclusion in results/README.md."""
    import torch

    first = conclusion(found, before)
    named = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    machine = f"commit {named.stdout.strip()}, torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}"
    PAGE.write_text(page(found, rates, command, machine, first), encoding="utf-8")
    index = INDEX.read_text(encoding="utf-8")
    INDEX.write_text(re.sub(r"(?m)^(\| \[speed\]\(speed\.md\) \| ).* \|$", lambda match: f"{match[1]}{first} |", index), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and its line in results/README.md")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the worktree is removed
    sys.exit(main())

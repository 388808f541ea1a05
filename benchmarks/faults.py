"""How often does a disturbed run end as the straight one? Kills, signals, damaged files, full disks and an hour of soak, in a table.

python -m benchmarks.faults [--kills 100] [--signals 50] [--damages 200] [--disks 30] [--soak-minutes 60] [--seed 0] [--output FILE.md]

All disturb the small job of tests/small_job.py at random moments, on one process and two, with zero to two loader workers. A fault is
held if the same command, started again, ends as a run that nobody disturbed: every line of metrics.jsonl but its times, as text, and the
exported weights, byte for byte. Damage is held, too, if it is refused by a message that names the file, without a traceback. Nothing may
be left running, and no temporary file may be left over. The soak kills one long run every minute, beside a run of the same length that
nobody disturbs, whose memory is watched. Exits with 1 if anything did not hold.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.conclusion import title_lines
from tests.faults.runs import Run, figures, said, steps_taken
from tests.nursery import Child, Nursery, Trap
from tests.small_job import SmallWorld

NUM_STEPS = 24
SOAK_STEPS = 1_000_000
STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 143, signal.SIGUSR1: 143}
REFUSED = (2, 3, 4)


@dataclass
class Row:
    """A fault, how often it was tried, and what went wrong each time it did not hold."""

    fault: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, failure: str, times: int = 1) -> None:
        """Count an attempt, or several that end together; a failure of "" held."""
        self.tried += times
        if failure:
            self.failures += [failure] * times
            print(f"{self.fault}: {failure}", flush=True)

    def __str__(self) -> str:
        return f"| {self.fault} | {self.tried} | {self.tried - len(self.failures)} |"


@dataclass(frozen=True)
class Bench:
    """What the faults share: a world of pictures, a nursery of commands, and straight runs by number of processes."""

    folder: Path
    nursery: Nursery
    world: SmallWorld
    draws: random.Random
    straight: dict[int, Run]

    @classmethod
    def make(cls, folder: Path, seed: int) -> "Bench":
        """Draw the world and take the straight runs."""
        world, nursery = SmallWorld.make(folder), Nursery(folder)
        bench = cls(folder, nursery, world, random.Random(seed), {})
        for world_size in (1, 2):
            bench.straight[world_size] = bench.job(f"straight-{world_size}", world_size, num_workers=0)
            bench.straight[world_size].finish()
        return bench

    def job(self, name: str, world_size: int, num_workers: int, world: SmallWorld | None = None) -> Run:
        """A job of 24 steps in a folder of its own."""
        changes = {"train__max_steps": NUM_STEPS, "data__num_workers": num_workers}
        return Run.make(self.nursery, world or self.world, self.folder / name, world_size, **changes)

    def drawn_job(self, name: str) -> Run:
        """One with a random number of processes and workers."""
        return self.job(name, self.draws.choice((1, 1, 2)), self.draws.randint(0, 2))

    def difference(self, run: Run, expected: Run | None = None) -> str:
        """What a finished run has other than the straight one, or another; empty: nothing."""
        expected = expected or self.straight[run.world_size]
        try:
            if said(run.folder) != said(expected.folder):
                return "other lines than the straight run's"
        except ValueError as error:
            return f"metrics.jsonl cannot be read: {error}"
        weights = [(job.folder / "export" / "model.safetensors").read_bytes() for job in (run, expected)]
        if weights[0] != weights[1]:
            return "other weights than the straight run's"
        return "" if figures(run) == figures(expected) else "other final figures than the straight run's"

    def resumed(self, run: Run) -> str:
        """Start a run again and let it finish; what is wrong then."""
        children = run.start()
        codes = [child.wait_for_code() for child in children]
        if any(codes) or "Traceback" in "".join(child.output() for child in children):
            return f"the resumed run ended with {codes}: {children[0].output()[-800:]}"
        left = [str(path) for path in run.folder.rglob(".*") if path.name != ".lock"]
        return self.difference(run) or (f"left lying about: {left}" if left else "")

    def at_a_random_step(self, run: Run, number: int) -> tuple[list[Child], list[int]]:
        """Start a run and send a signal some steps later; (its processes, their exit codes)."""
        least = min(steps_taken(run.folder) + self.draws.randint(0, 4), NUM_STEPS - 2)
        children = run.start()
        main = children[0]  # before its handlers are there a signal is the shell's affair
        main.wait_until(lambda: main.log.exists() and "loop " in main.output() and steps_taken(run.folder) >= least)
        time.sleep(self.draws.random() * 0.2)
        for child in children:
            child.kill(number)
        return children, [child.wait_for_code() for child in children]


def left_running(children: list[Child], patience: float = 30) -> str:
    """Names of processes that live on in the groups of commands that have ended; they have some seconds to notice."""
    groups = {child.pid for child in children}
    deadline = time.monotonic() + patience
    while True:
        living = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = stat.read_text().rpartition(")")
            except OSError:
                continue
            state, _, group = rest.split()[:3]
            if int(group) in groups and state != "Z":
                living.append(name)
        if not living or time.monotonic() > deadline:
            return ", ".join(living)
        time.sleep(0.1)


def interruptions(bench: Bench, row: Row, times: int, signals: dict[signal.Signals, int], each: int = 5) -> None:
    """Runs that are interrupted `each` times by one of the signals, then left to finish."""
    while row.tried < times:
        number = bench.draws.choice(list(signals))
        run = bench.drawn_job(f"{row.fault}-{row.tried}")
        failure, done = "", 0
        while done < min(each, times - row.tried) and not failure:
            children, codes = bench.at_a_random_step(run, number)
            done += 1
            if set(codes) - {signals[number], 0}:
                failure = f"{number.name} ended with {codes}, expected {signals[number]}: {children[0].output()[-800:]}"
            elif "Traceback" in "".join(child.output() for child in children):
                failure = f"{number.name}: a traceback"
            elif living := left_running(children):
                failure = f"{number.name} left running: {living}"
            if set(codes) == {0}:  # it came too late
                break
        row.note(failure or bench.resumed(run), done)
        shutil.rmtree(run.config.parent)


def _flip(path: Path, draws: random.Random) -> None:
    raw = bytearray(path.read_bytes() or b"\0")
    raw[draws.randrange(len(raw))] ^= 1 << draws.randrange(8)
    path.write_bytes(raw)


def _truncate(path: Path, draws: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: draws.randrange(max(1, len(raw)))])


def _overwrite(path: Path, draws: random.Random) -> None:
    path.write_bytes(draws.randbytes(max(1, path.stat().st_size)))


def _empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, _: random.Random) -> None:
    path.unlink()


def _make_folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit flipped in": _flip,
    "an end cut off": _truncate,
    "random bytes in": _overwrite,
    "emptied:": _empty,
    "removed:": _remove,
    "a folder in place of": _make_folder,
}
HARMLESS = {".lock", "README.md", "report.html"}


def damages(bench: Bench, row: Row, times: int) -> None:
    """A random damage to a random file of a killed or a finished run, of its base or of its data, then the same command."""
    place, kept = bench.folder / "damaged", bench.folder / "kept"
    run = Run.make(bench.nursery, SmallWorld.make(place / "world"), place, train__max_steps=NUM_STEPS)
    for name, trap in (("killed", Trap("train.model.grad_cache:image_features", 20)), ("finished", None)):
        run.start(trap=trap)[0].wait()
        shutil.copytree(place, kept / name)
    unharmed = run.finish()[0].output()
    while row.tried < times:
        name = bench.draws.choice(("killed", "killed", "finished"))
        shutil.rmtree(place)
        shutil.copytree(kept / name, place)
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name not in HARMLESS and path != run.config)
        victim = bench.draws.choice(files)
        what, damage = bench.draws.choice(list(DAMAGES.items()))
        damage(victim, bench.draws)
        row.note(_outcome(bench, run, victim, f"{name} run, {what} {victim.relative_to(place)}", unharmed))


def _outcome(bench: Bench, run: Run, victim: Path, words: str, unharmed: str) -> str:
    """What is wrong with how the command took the damage.

    Args:
        unharmed: what the command prints on the finished run without the damage.
    """
    (child,) = run.start()
    code, output = child.wait_for_code(), child.output()
    if "Traceback" in output:
        return f"{words}: a traceback: {output[-800:]}"
    if code == 0 and output == unharmed:
        return ""
    if code in REFUSED:
        is_named = victim.name in output or victim.parent.name in output
        return "" if is_named else f"{words}: the file is not named: {output[-400:]}"
    if code != 0:
        return f"{words}: ended with {code}: {output[-800:]}"
    found = bench.difference(run, Run(bench.nursery, bench.folder / "kept" / "finished" / run.config.name))
    return "" if not found or "warning" in output else f"{words}: {found}, and nothing was said"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 16 MB; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disks(bench: Bench, row: Row, times: int) -> None:
    """The disk fills up at a random step; then there is room again."""
    while row.tried < times:
        with small_disk(bench.folder / f"disk-{row.tried}") as disk:
            run = bench.job(f"{disk.name}/job", 1, bench.draws.randint(0, 1))
            (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", bench.draws.randint(1, NUM_STEPS - 1), signal.SIGSTOP))
            child.wait_until(child.stopped)
            room = os.statvfs(disk)
            (disk / "filler").write_bytes(b"x" * max(0, room.f_bavail * room.f_frsize - bench.draws.randrange(300_000)))
            child.kill(signal.SIGCONT)
            code, output = child.wait_for_code(), child.output()
            (disk / "filler").unlink()
            failure = "" if code in (0, 4) and "Traceback" not in output else f"ended with {code}: {output[-800:]}"
            row.note(failure or bench.resumed(run))


def soak(bench: Bench, row: Row, minutes: float) -> str:
    """One long run killed every minute beside one that nobody disturbs; a sentence on what they had in memory."""
    if not minutes:
        return ""
    changes = {"eval_every_steps": 200, "checkpoint_every_steps": 50, "max_steps": SOAK_STEPS}
    runs = [
        Run.make(
            bench.nursery, bench.world, bench.folder / name, data__num_workers=1, mining__mine_every_steps=300,
            **{f"train__{key}": value for key, value in changes.items()},
        )
        for name in ("killed", "undisturbed")
    ]  # fmt: skip
    (calm,), began, measured = runs[1].start(), time.monotonic(), []
    while time.monotonic() - began < 60 * minutes:
        (child,) = runs[0].start()
        until = time.monotonic() + 55 + 10 * bench.draws.random()
        before = steps_taken(runs[0].folder)
        while time.monotonic() < until:
            time.sleep(5)
            measured.append((steps_taken(runs[1].folder), _resident_megabytes(calm.pid)))
        child.kill(signal.SIGKILL)
        code, living = child.wait_for_code(), left_running([child])
        common = min(len(said(run.folder)) for run in runs)
        failure = f"ended with {code}" if code != -signal.SIGKILL else f"left running: {living}" if living else ""
        if not failure and steps_taken(runs[0].folder) <= before:
            failure = "no step in a minute"
        if not failure and said(runs[0].folder)[:common] != said(runs[1].folder)[:common]:
            failure = "other lines than the undisturbed run's"
        row.note(failure)
    calm.kill(signal.SIGTERM)
    calm.wait_for_code()
    steps, megabytes = np.array([point for point in measured if point[1] > 0]).T
    late = steps >= steps.max() / 4  # what is made at the start is there by then
    slope = np.polyfit(steps[late], megabytes[late], 1)[0] * 1000
    return (
        f"The undisturbed run took {int(steps.max()):,} steps in {minutes:g} minutes with {megabytes[late].min():.0f} to "
        f"{megabytes[late].max():.0f} MB resident, growing by {slope:+.2f} MB per 1,000 steps (least squares over the last three quarters)."
    )


def _resident_megabytes(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(description="Disturb runs and compare them with a straight one.")
    for name, number in (("kills", 100), ("signals", 50), ("damages", 200), ("disks", 30), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=number, help=f"default {number}")
    parser.add_argument("--soak-minutes", type=float, default=60.0, help="of the soak (default 60)")
    parser.add_argument("--output", type=Path, help="write the table there")
    asked = parser.parse_args()
    names = ("SIGKILL", "SIGTERM, SIGINT, SIGHUP, SIGUSR1", "damaged file", "full disk", "soak, SIGKILL every minute")
    rows = [Row(name) for name in names]
    with tempfile.TemporaryDirectory() as name:
        bench = Bench.make(Path(name), asked.seed)
        try:
            interruptions(bench, rows[0], asked.kills, {signal.SIGKILL: -signal.SIGKILL})
            interruptions(bench, rows[1], asked.signals, STOPS)
            damages(bench, rows[2], asked.damages)
            full_disks(bench, rows[3], asked.disks)
            memory = soak(bench, rows[4], asked.soak_minutes)
        finally:
            bench.nursery.close()
    table = "\n".join(["| fault | tried | held |", "| --- | --- | --- |", *map(str, rows)])
    failures = sorted({f"- {row.fault}: {failure.splitlines()[0]}" for row in rows for failure in row.failures})
    text = f"{table}\n\n{memory}\n" + ("\nDid not hold:\n\n" + "\n".join(failures) + "\n" if failures else "")
    print(text)
    if asked.output is not None:
        command = f"python -m benchmarks.faults {' '.join(sys.argv[1:])}"
        about = " ".join((__doc__ or "").split("\n\n")[2].split())
        title = "\n".join([*title_lines("faults", "Faults"), f"Made by `{command}` on {os.cpu_count()} cores. {about}"])
        asked.output.write_text(f"{title}\n\n{text}", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""How often does an interrupted run end as the straight one? Kills at random moments, at one process and several, in a table.

python -m benchmarks.kill_study [--moments 5] [--seed 0] [--processes 1 2 3]

Each row: one run of the small job of tests/small_job.py is interrupted MOMENTS times by one signal, each a random time after a random
number of steps, started again by the same command each time, and let finish at last. Compared with a run nobody disturbed: every line of
metrics.jsonl but its times, as text, and the exported weights, byte for byte. Exits with 1 if anything differs.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.runs import Run, said, steps_taken
from tests.nursery import Nursery
from tests.small_job import SmallWorld

NUM_STEPS = 24


def interrupt(run: Run, number: signal.Signals, moments: int, draws: random.Random) -> list[str]:
    """Interrupt a run so many times; where it stood each time, in words."""
    stood = []
    while len(stood) < moments:
        before = steps_taken(run.folder)
        least = min(before + draws.randint(1, 4), NUM_STEPS - 2)
        children = run.start()
        children[0].wait_until(lambda least=least: steps_taken(run.folder) >= least)
        time.sleep(draws.random() * 0.15)
        for child in children:
            child.kill(number)
        codes = {child.wait() for child in children}
        expected = 143 if number == signal.SIGTERM else -number
        if codes != {expected}:
            raise SystemExit(f"expected exit code {expected}, found {codes}:\n{children[0].output()}")
        stood.append(str(steps_taken(run.folder)))
    return stood


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(description="Interrupt runs and compare them with a straight one.")
    parser.add_argument("--moments", type=int, default=5, help="interruptions of each run (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3], help="numbers of processes (default 1 2 3)")
    asked = parser.parse_args()
    draws = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = SmallWorld.make(folder)
        nursery = Nursery(folder)
        print(
            f"| processes | signal | interrupted after step | lines compared | lines that differ | weights equal |\n{'| --- ' * 6}|",
            flush=True,
        )
        num_bad = 0
        for world_size in asked.processes:
            straight = _job(nursery, world, folder / f"straight-{world_size}", world_size)
            straight.finish()
            for number in (signal.SIGTERM, signal.SIGKILL):
                run = _job(nursery, world, folder / f"{number.name}-{world_size}", world_size)
                stood = interrupt(run, number, asked.moments, draws)
                run.finish()
                num_bad += _row(run, straight, number, stood)
        nursery.close()
    return 1 if num_bad else 0


def _job(nursery: Nursery, world: SmallWorld, folder: Path, world_size: int) -> Run:
    return Run.make(nursery, world, folder, world_size, train__max_steps=NUM_STEPS, train__batch_size=12, data__num_workers=1)


def _row(run: Run, straight: Run, number: signal.Signals, stood: list[str]) -> bool:
    """Print a row; True if anything differs."""
    found, expected = said(run.folder), said(straight.folder)
    differing = sum(one != other for one, other in zip(found, expected, strict=False)) + abs(len(found) - len(expected))
    weights = [(job.folder / "export" / "model.safetensors").read_bytes() for job in (run, straight)]
    equal = "yes" if weights[0] == weights[1] else "NO"
    print(f"| {run.world_size} | {number.name} | {', '.join(stood)} | {len(expected)} | {differing} | {equal} |", flush=True)
    return bool(differing) or equal == "NO"


if __name__ == "__main__":
    sys.exit(main())

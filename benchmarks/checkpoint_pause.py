"""How long steps stand still at a checkpoint, and how much slower they are while one is written: base size, two trees in turns.

    git worktree add PATH/TO/OLDER COMMIT
    python -m benchmarks.checkpoint_pause --against PATH/TO/OLDER --turns 2

A SigLIP of the base's size (203 M parameters, random weights) is tuned for some steps on pictures of the demo, by the `train` of each tree
in turns, with a checkpoint (weights and AdamW's moments, 2.4 GB) every third step. The pause is the time that `BaseLoop.save` takes between
two steps; the first checkpoint, which finds no moments and no memory to copy into, and the last, which a run waits for, are left out. Steps
while a checkpoint is written are the first after each. Needs 10 GiB of memory and 8 GB of disk.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EVERY = 3
SAVED = "saved.json"


def measure(config: Path, output: Path) -> None:
    """Carry out a run by the tree of the working folder; `output` gets [step, seconds] of each call of `save`."""
    from train.engine.loop import BaseLoop

    saved, save = list[tuple[int, float]](), BaseLoop.save

    def timed(self: Any, *words: Any, **keys: Any) -> None:
        started = time.perf_counter()
        save(self, *words, **keys)
        saved.append((self.state.step, time.perf_counter() - started))

    BaseLoop.save = timed  # type: ignore[method-assign]
    sys.argv = ["train", str(config)]
    try:
        runpy.run_module("train", run_name="__main__")
    finally:
        output.write_text(json.dumps(saved), encoding="utf-8")


def write_config(folder: Path, base: Path, asked: argparse.Namespace) -> Path:
    """A run without evaluation and mining, in a folder of its own."""
    import yaml

    config: dict[str, Any] = {
        "name": "job",
        "runs_folder": str(folder / "runs"),
        "curves": False,
        "model": {"base": str(base)},
        "data": {"source": str(ROOT / "demo/data/scenes.parquet"), "val_split": None, "test_split": None, "num_workers": 1},
        "train": {
            "max_steps": asked.steps,
            "batch_size": asked.batch_size,
            "learning_rate": 1e-6,
            "warmup_steps": 0,
            "precision": "fp32",
            "eval_every_steps": 10**6,
            "checkpoint_every_steps": EVERY,
            "keep_checkpoints": 1,
        },
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def run(tree: Path, base: Path, asked: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of pauses, of steps beside a checkpoint that is written, and of other steps, of one run of a tree."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-pause-", dir=asked.folder) as name:
        folder = Path(name)
        config = write_config(folder, base, asked)
        words = [sys.executable, "-P", str(Path(__file__).resolve()), "--measure", str(config), str(folder / SAVED)]
        done = subprocess.run(words, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tree} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        saved = json.loads((folder / SAVED).read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (folder / "runs/job/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if line["event"] == "step"}
    between = range(2 * EVERY, asked.steps, EVERY)
    return {
        "pause": [taken for step, taken in saved if step in between],
        "first": [taken for step, taken in saved if step == EVERY],
        "beside": [seconds[step + 1] for step in (EVERY, *between)],
        "alone": [seconds[step] for step in (EVERY, *between)],
    }


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """The figures as Markdown."""
    rows = ["| tree | pause, s | at the first with moments, s | a step, s | a step beside a checkpoint, s |", "|---|---|---|---|---|"]
    for name, one in found.items():
        parts = [one[part] for part in ("pause", "first", "alone", "beside")]
        cells = [f"{median(part):.2f} ({min(part):.2f} to {max(part):.2f})" for part in parts]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the folder of another version (default: none)")
    parser.add_argument("--turns", type=int, default=2, help="runs of each (default 2)")
    parser.add_argument("--steps", type=int, default=4 * EVERY, help=f"of each run (default {4 * EVERY})")
    parser.add_argument("--batch-size", type=int, default=2, help="default 2")
    parser.add_argument("--folder", type=Path, help="where runs are written (default: the system's folder for temporary files)")
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("CONFIG", "OUTPUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(*asked.measure)
    from benchmarks.base_size import write_base

    trees = {"this": ROOT} | ({"other": asked.against.resolve()} if asked.against else {})
    found: dict[str, dict[str, list[float]]] = {name: {} for name in trees}
    with tempfile.TemporaryDirectory(prefix="checkpoint-pause-", dir=asked.folder) as name:
        base = Path(name) / "base"
        size = write_base(base, ROOT / "demo/data/scenes.parquet", ROOT / "demo/data")
        print(f"{size / 1e6:.1f} M parameters, batch {asked.batch_size}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        for turn in range(asked.turns):
            for name in list(trees)[:: 1 if turn % 2 else -1]:
                for part, values in run(trees[name], base, asked).items():
                    found[name].setdefault(part, []).extend(values)
                print(f"turn {turn + 1}, {name}: {json.dumps(found[name])}", flush=True)
    print(table(found))
    if len(found) == 2:
        print(f"pause, other over this: {median(found['other']['pause']) / median(found['this']['pause']):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How long steps stand still at a checkpoint of base size, and how much slower they are while it is written, in two trees in turns.

    git worktree add PATH/TO/OLDER COMMIT
    python -m benchmarks.checkpoint_pause --against PATH/TO/OLDER --turns 2

Weights of a SigLIP of the base's size (203 M parameters, random) and AdamW's moments of them, 2.4 GB, are saved as the step loop of each
tree does it. A step is a product of matrices in one thread. The first checkpoint of each start is left out: its copy goes into memory that
is new. Needs 6 GiB of memory and 8 GB of disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


class Random:
    """What trains of a model of the base's size, as a `Trainable`, with an optimizer that has its moments."""

    def __init__(self) -> None:
        from transformers import SiglipConfig, SiglipModel

        with torch.device("meta"):
            shapes = {name: parameter.shape for name, parameter in SiglipModel(SiglipConfig()).named_parameters()}
        self.parameters = {name: torch.nn.Parameter(torch.rand(shape)) for name, shape in shapes.items()}
        self.optimizer = torch.optim.AdamW(self.parameters.values())
        for parameter in self.parameters.values():
            self.optimizer.state[parameter] = {key: torch.rand(parameter.shape) for key in ("exp_avg", "exp_avg_sq")}

    def trainable(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, parameter)."""
        return iter(self.parameters.items())


def measure(folder: Path, num_checkpoints: int) -> dict[str, list[float]]:
    """Seconds of the pause and of the writing of each checkpoint but the first, and of steps alone and beside the writing."""
    from train.engine import checkpoint

    is_written = Event()

    def write(checkpoints: Any, what: Any) -> None:
        checkpoints.commit(what)
        checkpoints.prune(1, None)
        is_written.set()

    torch.set_num_threads(1)
    trained, checkpoints = Random(), checkpoint.Checkpoints(folder)
    state = checkpoint.State(base_sha256="", data_sha256="")
    left, right = torch.rand(2, 1024, 1024)
    found: dict[str, list[float]] = {"alone": [], "pause": [], "written": [], "beside": []}

    def step(kind: str) -> None:
        started = time.perf_counter()
        for _ in range(4):
            torch.mm(left, right)
        found[kind].append(time.perf_counter() - started)

    writer: Any = checkpoint.Writer(lambda: None) if hasattr(checkpoint, "Writer") else None
    for number in range(num_checkpoints):
        for _ in range(20):
            step("alone")
        started = time.perf_counter()
        handed = replace(state, step=number)
        if writer is None:  # a version before the thread
            untyped: Any = checkpoints
            untyped.save(handed, trained, trained.optimizer, None)
            untyped.prune(1, None)
        else:
            is_written.clear()
            gathered = checkpoints.gather(handed, trained, trained.optimizer, None, memory=writer.memory)  # type: ignore[arg-type]
            assert gathered is not None and gathered.is_copy
            writer.start(partial(write, checkpoints, gathered))
        found["pause"].append(time.perf_counter() - started)
        while writer is not None and not is_written.is_set():
            step("beside")
        found["written"].append(time.perf_counter() - started)
        if writer is not None:
            writer.wait()
        if not number:
            found |= {"pause": [], "written": [], "beside": []}
    return found


def run(tree: Path, asked: argparse.Namespace) -> dict[str, list[float]]:
    """`measure` by a tree, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-pause-", dir=asked.folder) as name:
        words = [sys.executable, "-P", str(Path(__file__).resolve()), "--checkpoints", str(asked.checkpoints), "--measure", name]
        done = subprocess.run(words, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """The figures as Markdown."""
    rows = ["| tree | steps stand still, s | until it is committed, s | a step alone, ms | a step beside it, ms |", "|---|---|---|---|---|"]
    for name, one in found.items():
        cells = [f"{median(one[part]):.2f} ({min(one[part]):.2f} to {max(one[part]):.2f})" for part in ("pause", "written")]
        cells += [f"{1000 * median(one[part]):.0f}" if one[part] else "" for part in ("alone", "beside")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the folder of another version (default: none)")
    parser.add_argument("--turns", type=int, default=2, help="starts of each (default 2)")
    parser.add_argument("--checkpoints", type=int, default=3, help="of each start (default 3)")
    parser.add_argument("--folder", type=Path, help="where they are written (default: the system's folder for temporary files)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.checkpoints)))
        return
    trees = ({"before": asked.against.resolve()} if asked.against else {}) | {"now": ROOT}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in trees}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for turn in range(asked.turns):
        for name in list(trees)[:: 1 if turn % 2 else -1]:
            for part, values in run(trees[name], asked).items():
                found[name].setdefault(part, []).extend(values)
    print(table(found))
    if len(found) == 2:
        print(f"pause, before over now: {median(found['before']['pause']) / median(found['now']['pause']):.1f}")


if __name__ == "__main__":
    main()

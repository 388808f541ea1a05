"""The same loss and gradients however the batch is divided: divisions against one process, on the same 64 images in one batch.

python -m benchmarks.batch_division --output results/batch-division.md
python -m benchmarks.batch_division --prepare FOLDER            the data and the base alone, for a division that another command runs
python -m benchmarks.batch_division --work FOLDER --further "two hosts=PATH" --output results/batch-division.md

A division is a group of processes that takes the first 20 steps of each case and writes its first gradients and all its losses to files:
    torchrun [--nnodes 2 --node-rank R ...] --nproc-per-node N -m tests.integration.train.gradients \\
        FOLDER/data/pairs.jsonl FOLDER/base PATH --num-steps 20
so a division over two hosts is that command on both and `--further "two hosts=PATH"` here. Where PATH holds no files the row is "not run".
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.conclusion import title_lines
from tests.integration.train.gradients import CASES
from tests.small_job import TINY, load, write_pictures
from train.model.random_init import write_scratch

NUM_IMAGES, NUM_STEPS = 64, 20


@dataclass(frozen=True)
class Division:
    """How a batch is divided: a name, processes, and rows of a cached micro-batch (None: the whole share at once)."""

    name: str
    num_processes: int
    micro_batch_size: int | None = None


REFERENCE = Division("1 process", 1)
DIVISIONS = [
    Division("2 processes", 2),
    Division("4 processes", 4),
    Division("cached micro-batches of 16", 1, 16),
    Division("2 processes, cached micro-batches of 16", 2, 16),
]


def prepare(folder: Path) -> None:
    """Draw the pictures and write the base."""
    manifest = write_pictures(folder / "data", {"train": NUM_IMAGES})
    write_scratch(folder / "base", TINY, load(manifest), seed=1)


def run(division: Division, work: Path) -> Path:
    """Run the processes of a division and return the folder of its files."""
    output = work / division.name.replace(" ", "-").replace(",", "")
    output.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(division.num_processes)]
    command += ["-m", "tests.integration.train.gradients", str(work / "data" / "pairs.jsonl"), str(work / "base"), str(output)]
    command += ["--num-steps", str(NUM_STEPS)]
    command += [] if division.micro_batch_size is None else ["--micro-batch-size", str(division.micro_batch_size)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    print(f"{division.name}: done", flush=True)
    return output


@dataclass(frozen=True)
class Difference:
    """A division against one process in one case, all relative.

    Attributes:
        loss: of the first loss.
        together: norm of the difference of all gradients over the global norm.
        worst: the largest norm of one tensor's difference over the global norm.
        drift: largest difference of a loss by the last step.
    """

    loss: float
    together: float
    worst: float
    drift: float


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Difference:
    """Differences over the global norm (a tensor's own norm would not do: the true gradient of k_proj.bias is 0)."""
    names = [name for name in expected if name not in ("loss", "losses")]
    assert found.keys() == expected.keys()
    off = {name: float(np.linalg.norm(found[name].astype(np.float64) - expected[name].astype(np.float64))) for name in names}
    norm = float(np.sqrt(sum(float(np.sum(expected[name].astype(np.float64) ** 2)) for name in names)))
    losses = np.abs(found["losses"] - expected["losses"]) / np.abs(expected["losses"])
    return Difference(
        float(losses[0]), float(np.sqrt(sum(value**2 for value in off.values()))) / norm, max(off.values()) / norm, float(losses.max())
    )


def rows(name: str, folder: Path, reference: Path) -> list[str]:
    """The lines of one division."""
    lines = []
    for case in CASES:
        path = folder / f"{case.name}.npz"
        limit = 1e-10 if case.double else 1e-5
        if not path.is_file():
            lines.append(f"| {name} | {case.name} | not run | | | {limit:.0e} | |")
            continue
        found = difference(dict(np.load(path)), dict(np.load(reference / path.name)))
        lines.append(
            f"| {name} | {case.name} | {found.loss:.1e} | {found.together:.1e} | {found.worst:.1e} | {limit:.0e} | {found.drift:.1e} |"
        )
    return lines


def page(divisions: dict[str, Path], reference: Path) -> str:
    """The table."""
    lines = [
        *title_lines("batch-division", "Same loss and gradients however the batch is divided"),
        f"`python -m benchmarks.batch_division`; {NUM_IMAGES} images in one batch, one thread each, differences from one process.",
        'A case is its arithmetic and the scope of its mined columns ("none": none are mined), with LoRA, or with a frozen tower,',
        'or with a distillation in one of its forms ("labels", "lists").',
        "Gradient: norm of the difference over the global norm, of all parameters together and of the worst tensor, at step 1;",
        "scale and bias are among them. Drift: the largest relative difference of a loss by step "
        f"{NUM_STEPS}, at a rate of 1e-3 (no guarantee).",
        "",
        "| division | case | loss | gradient, together | gradient, worst tensor | guaranteed | drift of the loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, folder in divisions.items():
        lines += rows(name, folder, reference)
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, help="write data and base into a folder, and leave")
    parser.add_argument("--work", type=Path, help="a prepared folder; default: a temporary one")
    parser.add_argument("--further", action="append", default=[], metavar="NAME=PATH", help="a division that another command ran")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if asked.prepare is not None:
        prepare(asked.prepare)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        if asked.work is None:
            prepare(work)
        reference = run(REFERENCE, work)
        divisions = {division.name: run(division, work) for division in DIVISIONS}
        divisions |= {name: Path(path) for name, path in (further.split("=", 1) for further in asked.further or ["two hosts="])}
        text = page(divisions, reference)
    print(text)
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

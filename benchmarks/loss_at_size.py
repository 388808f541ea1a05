"""Loss forward and backward at a large batch, next to open_clip's SigLipLoss.

python -m benchmarks.loss_at_size --open-clip PATH/TO/src/open_clip/loss.py [--output results/loss-at-size.md]     B = 16,384 on a CPU
python -m benchmarks.loss_at_size --open-clip PATH --device cuda --batch 32768                                     the same on a GPU

Each system runs in a process of its own; rounds are interleaved, because machines are shared. Memory is what was held beyond the embeddings
at most, their gradients included: resident memory read every 5 ms, or torch's own count on a GPU. Both get the same unit vectors.
"""

import argparse
import hashlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.conclusion import title_lines
from benchmarks.cost import measured
from eval.dataset.retrieval_set import GroupHashes
from eval.processes import Processes
from train.loss.positives import BatchPositives
from train.loss.sigmoid import Pairing, sigmoid_loss

WIDTH = 768
SCALE, BIAS = 112.0, -12.7  # about SigLIP's own
SYSTEMS = ("open_clip", "ours")


def leaves(batch: int, device: str) -> list[torch.Tensor]:
    """Images, captions, scale and bias: half of each caption is its image."""
    draws = torch.Generator().manual_seed(0)
    images_BD = torch.nn.functional.normalize(torch.randn(batch, WIDTH, generator=draws), dim=1)
    captions_BD = torch.randn(batch, WIDTH, generator=draws).mul_(WIDTH**-0.5).add_(images_BD)
    captions_BD /= torch.linalg.vector_norm(captions_BD, dim=1, keepdim=True)
    values = [images_BD, captions_BD, torch.tensor(SCALE), torch.tensor(BIAS)]
    return [value.to(device).requires_grad_() for value in values]


def ours(values: list[torch.Tensor]) -> torch.Tensor:
    """The loss of train/loss/sigmoid.py; every image has a caption of its own, as open_clip takes for granted. Looking the pairs up is
    included."""
    batch = len(values[0])
    number = np.arange(batch)
    positives = BatchPositives([number], [(number, GroupHashes(number, number))])
    return sigmoid_loss(*values, Pairing(positives, (batch,), batch, processes=Processes())).total


def theirs(values: list[torch.Tensor], source: Path) -> Callable[[], torch.Tensor]:
    """SigLipLoss of open_clip's loss.py."""
    spec = importlib.util.spec_from_file_location("open_clip_loss", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.SigLipLoss()
    return lambda: loss(*values)


def run_system(system: str, batch: int, device: str, source: Path | None) -> dict[str, Any]:
    """Forward and backward in this process: seconds, megabytes, loss, and what of the gradients shows that both systems do the same."""
    values = leaves(batch, device)
    warm = [value[:256].detach().requires_grad_() if value.ndim else value.detach().requires_grad_() for value in values]
    forward = (lambda: ours(values)) if system == "ours" else theirs(values, source or Path())
    (
        ours(warm) if system == "ours" else theirs(warm, source or Path())()
    ).backward()  # what torch loads on its first call is nobody's memory

    def work() -> torch.Tensor:
        loss = forward()
        loss.backward()
        return loss.detach()

    loss, cost = measured(work, device)
    norms = [float(torch.linalg.vector_norm(value.grad, dtype=torch.float64)) for value in values if value.grad is not None]
    return cost | {"numbers": [float(loss), *norms]}


def child(system: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One system in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loss_at_size", "--system", system, "--open-clip", str(asked.open_clip)]
    command += ["--batch", str(asked.batch), "--device", asked.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{time.strftime('%X')} {system}: {result['seconds']:.1f} s, {result['megabytes']:.0f} MB", flush=True)
    return result


def table(rounds: list[dict[str, dict[str, Any]]], asked: argparse.Namespace) -> str:
    """The page."""
    device = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} CPU thread(s) of a shared machine"
    source = hashlib.sha256(asked.open_clip.read_bytes()).hexdigest()[:12]
    lines = [
        *title_lines("loss-at-size", "Loss at size"),
        f"`python -m benchmarks.loss_at_size --open-clip PATH --batch {asked.batch} --device {asked.device} --repeats {asked.repeats}`",
        f"(open_clip's src/open_clip/loss.py of SHA-256 {source}..., torch {torch.__version__}, {device}; float32, D = {WIDTH}.)",
        "Forward and backward on one process, in seconds; memory beyond the embeddings at most, their gradients"
        f" ({2 * asked.batch * WIDTH * 4 / 1e6:.0f} MB) included.",
        "",
        "| round | open_clip, s | ours, s | times as fast | open_clip, MB | ours, MB |",
        "|---|---|---|---|---|---|",
    ]
    for number, both in enumerate(rounds, 1):
        them, us = both["open_clip"], both["ours"]
        ratio = them["seconds"] / us["seconds"]
        lines.append(
            f"| {number} | {them['seconds']:.1f} | {us['seconds']:.1f} | {ratio:.2f} | {them['megabytes']:.0f} | {us['megabytes']:.0f} |"
        )
    ratios = [both["open_clip"]["seconds"] / both["ours"]["seconds"] for both in rounds]
    fastest = {system: min(both[system]["seconds"] for both in rounds) for system in SYSTEMS}
    pairs = [pair for both in rounds for pair in zip(both["ours"]["numbers"], both["open_clip"]["numbers"], strict=True)]
    gap = max(abs(one - other) / abs(other) for one, other in pairs)
    lines += [
        "",
        f"Times as fast: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}; each system's fastest round "
        f"against the other's: {fastest['open_clip'] / fastest['ours']:.2f}.",
        f"Loss and norms of the four gradients differ by at most {gap:.1e} of themselves.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-clip", type=Path, required=True, help="loss.py of a checkout of open_clip")
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.system:
        print(json.dumps(run_system(asked.system, asked.batch, asked.device, asked.open_clip)))
        return
    text = table([{system: child(system, asked) for system in SYSTEMS} for _ in range(asked.repeats)], asked)
    print(text)
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

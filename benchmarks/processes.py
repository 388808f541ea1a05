"""A step over processes on CPUs: gradients summed while the backward pass runs against after it, and texts all at once against a ring.

    python -m benchmarks.processes --output results/processes.md

Processes of this machine over gloo, a thread each, a small SigLIP with random weights. Both ways are taken in turns by the same processes,
so that what else the machine does meets both. Ratios are of neighbouring turns.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from transformers import SiglipConfig, SiglipModel

from benchmarks.conclusion import title_lines
from eval.dataset.retrieval_set import GroupHashes
from eval.encoder.inputs import image_features, text_features
from eval.processes import Processes
from train.loss import sigmoid
from train.loss.positives import BatchPositives
from train.loss.sigmoid import Pairing, sigmoid_loss
from train.optim.update import Gradients

SHARE, NUM_TOKENS, VOCABULARY, PIXELS = 16, 32, 16_000, 64
TEXTS, WIDTH = 1024, 768
"""Of the loss alone: images and texts of a process, and their width."""


def small_model() -> SiglipModel:
    """About 20 M parameters: 6 layers of width 256 in each tower."""
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    text = shape | {"vocab_size": VOCABULARY, "max_position_embeddings": NUM_TOKENS, "projection_size": 256}
    torch.manual_seed(0)
    return SiglipModel(SiglipConfig(text_config=text, vision_config=shape | {"image_size": PIXELS, "patch_size": 16}))


def pairing(share: int, processes: Processes) -> Pairing:
    """Every image has a caption of its own."""
    number = np.arange(share) + share * processes.rank
    hashes = [np.arange(share) + share * rank for rank in range(processes.world_size)]
    counts = (share,) * processes.world_size
    return Pairing(BatchPositives(hashes, [(number, GroupHashes(number, number))]), counts, share * len(counts), processes=processes)


def in_turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, taken in turns by all processes together, after a first turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, take in ways.items():
            dist.barrier()
            started = time.perf_counter()
            take()
            dist.barrier()
            seconds[name].append(time.perf_counter() - started)
    return {name: found[1:] for name, found in seconds.items()}


def sums(processes: Processes, repeats: int) -> dict[str, Any]:
    """Forward pass, backward pass and the gradients' sum, with the sums begun meanwhile and afterwards."""
    model = small_model()
    gradients = Gradients(list(model.parameters()), processes)
    pixels, tokens = torch.randn(SHARE, 3, PIXELS, PIXELS), torch.randint(VOCABULARY, (SHARE, NUM_TOKENS))
    pairs = pairing(SHARE, processes)

    def step(meanwhile: bool, then: Callable[[], Any] = lambda: None) -> None:
        gradients.zero()
        images_bD, texts_nD = image_features(model, pixels), text_features(model, tokens)
        terms = sigmoid_loss(images_bD, texts_nD, model.logit_scale.exp().squeeze(), model.logit_bias.squeeze(), pairs)
        gradients.expect(meanwhile)
        terms.total.backward()
        then()
        gradients.sum_over_processes()

    kept: list[torch.Tensor] = []
    step(True)  # the order becomes known
    for meanwhile in (True, False):
        step(meanwhile)
        kept.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]))
    waited: dict[bool, list[float]] = {True: [], False: []}

    def timed(meanwhile: bool) -> None:
        started = list[float]()
        step(meanwhile, lambda: started.append(time.perf_counter()))
        waited[meanwhile].append(time.perf_counter() - started[0])

    seconds = in_turns({"after": lambda: timed(False), "meanwhile": lambda: timed(True)}, repeats)
    num_bytes = 4 * len(kept[0])
    return {
        "seconds": seconds,
        "waited": {"after": waited[False][1:], "meanwhile": waited[True][1:]},
        "same_bits": bool(torch.equal(*kept)),
        "segments": len(gradients._segments),
        "bytes": num_bytes,
        "sent": 2 * num_bytes * (processes.world_size - 1) // processes.world_size,
    }


@contextlib.contextmanager
def gathering(asked: bool) -> Iterator[None]:
    """Whether texts come all at once, whatever the device."""
    with mock.patch.object(sigmoid, "_is_gathered", lambda texts_nD, counts: asked):
        yield


def texts(processes: Processes, repeats: int) -> dict[str, Any]:
    """The loss and its gradients."""
    draws = torch.Generator().manual_seed(processes.rank)
    values = [torch.nn.functional.normalize(torch.randn(TEXTS, WIDTH, generator=draws), dim=1).requires_grad_() for _ in range(2)]
    scalars = [torch.tensor(100.0, requires_grad=True), torch.tensor(-12.0, requires_grad=True)]
    pairs = pairing(TEXTS, processes)
    found: dict[bool, torch.Tensor] = {}

    def take(asked: bool) -> None:
        with gathering(asked):
            sigmoid_loss(*values, *scalars, pairs).total.backward()
        assert values[1].grad is not None
        found[asked], values[1].grad, values[0].grad = values[1].grad, None, None

    seconds = in_turns({"ring": lambda: take(False), "at once": lambda: take(True)}, repeats)
    gap = torch.linalg.vector_norm(found[True] - found[False]) / torch.linalg.vector_norm(found[False])
    return {"seconds": seconds, "gap": float(gap), "messages": {"ring": processes.world_size, "at once": 2}}


def run(num_processes: int, repeats: int) -> dict[str, Any]:
    """What the main process of so many measures."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        command += ["-m", "benchmarks.processes", "--repeats", str(repeats), "--worker", str(Path(folder) / "found.json")]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return dict(json.loads((Path(folder) / "found.json").read_text()))


def times_as_fast(seconds: dict[str, list[float]], old: str, new: str) -> str:
    """Median and quartiles of neighbouring turns' ratios."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds[old], seconds[new], strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def milliseconds(seconds: dict[str, list[float]], *ways: str) -> str:
    """Cells with the median of each way."""
    return " | ".join(f"{1e3 * statistics.median(seconds[way]):.0f}" for way in ways)


def page(rows: dict[int, dict[str, Any]], repeats: int, load: float) -> str:
    """The page."""
    lines = [
        *title_lines("processes", "A step over processes"),
        f"`python -m benchmarks.processes --repeats {repeats}` on {os.cpu_count()} cores of a shared machine (load {load:.1f}),"
        " gloo, a thread each; median of neighbouring turns' ratios, quartiles in parentheses.",
        "",
        "| processes | gradients | segments | sent by each, MB | sums waited for after the backward pass, ms | meanwhile, ms "
        "| step times as fast | same bits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for world_size, found in rows.items():
        of = found["sums"]
        lines.append(
            f"| {world_size} | {of['bytes'] / 1e6:.0f} MB | {of['segments']} | {of['sent'] / 1e6:.0f} "
            f"| {milliseconds(of['waited'], 'after', 'meanwhile')} "
            f"| {times_as_fast(of['seconds'], 'after', 'meanwhile')} | {'yes' if of['same_bits'] else 'no'} |"
        )
    lines += [
        "",
        f"The loss of {TEXTS:,} images and texts a process, width {WIDTH}, with its gradients:",
        "",
        "| processes | messages of a ring | at once | ring, ms | at once, ms | times as fast | gradient apart |",
        "|---|---|---|---|---|---|---|",
    ]
    for world_size, found in rows.items():
        of = found["texts"]
        lines.append(
            f"| {world_size} | {of['messages']['ring']} | {of['messages']['at once']} | {milliseconds(of['seconds'], 'ring', 'at once')} "
            f"| {times_as_fast(of['seconds'], 'ring', 'at once')} | {of['gap']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is None:
        load = os.getloadavg()[0]
        text = page({world_size: run(world_size, asked.repeats) for world_size in asked.processes}, asked.repeats, load)
        print(text)
        if asked.output is not None:
            asked.output.write_text(text, encoding="utf-8")
        return
    dist.init_process_group("gloo")
    processes = Processes.current()
    found = {"sums": sums(processes, asked.repeats), "texts": texts(processes, asked.repeats)}
    if processes.is_main:
        asked.worker.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""SigLIP base on a GPU in ten minutes: step rates, a refresh of mining, reranking, peak memory, equality with the CPU.

    python -m benchmarks.gpu                       on a machine with a CUDA GPU: measures, and writes results/gpu.md
    python -m benchmarks.gpu                       without one: counts, and writes the estimate into results/gpu.md, which says so
    python -m benchmarks.gpu plain-bf16 refresh    some parts
    python -m benchmarks.gpu --tiny --device cpu --output OUTPUT.md     every part with a tiny model on the CPU: a rehearsal

Each part is a process of its own with a time limit of its own, so that one that fails leaves the others. Weights are random and pictures
are drawn, neither of which changes a rate. A step is that of a run (train/siglip/step.py) on a batch that is there: reading pictures is not
in it. Rates are of one GPU.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.conclusion import INDEX, title_lines
from benchmarks.refresh_cost import COCO, PEAK_TFLOPS, PICTURES_A_CORE, SHARE_OF_PEAK, cases

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 570
STEPS = {
    "plain-bf16": {"precision": "bf16"},
    "plain-fp32": {"precision": "fp32"},
    "cached-bf16": {"precision": "bf16", "cached": True},
    "mined-bf16": {"precision": "bf16", "mined": 2},
    "compiled-bf16": {"precision": "bf16", "compile": True},
    "compiled-mined-bf16": {"precision": "bf16", "mined": 2, "compile": True},
}
LIMITS = {name: 150 if "compiled" in name else 75 for name in STEPS} | {"refresh": 90, "reranking": 75, "equality": 75}
"""Seconds of each part at most; a part gets less where TOTAL_SECONDS are nearly spent. The order is that of what matters most."""
_ORDER = ("plain-bf16", "equality", "mined-bf16", "cached-bf16", "refresh", "reranking", "compiled-bf16", "plain-fp32")
_ORDER += ("compiled-mined-bf16",)
BF16_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""FLOP/s of dense bf16 products by NVIDIA's data sheets (of the SXM forms)."""


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    batch: int
    num_photographs: int
    photograph: tuple[int, int]
    steps: int
    rerank_captions: int


FULL = Size(batch=256, num_photographs=512, photograph=(320, 240), steps=10, rerank_captions=60)
TINY = Size(batch=8, num_photographs=24, photograph=(64, 48), steps=2, rerank_captions=6)


@dataclass(frozen=True)
class Place:
    """Where a part works, and with what: the models and data of `prepare`, device and size."""

    folder: Path
    device: Any
    size: Size

    @property
    def manifest(self) -> Path:
        """Drawn photographs, five captions each."""
        return self.folder / "captions.jsonl"

    @property
    def base(self) -> Path:
        """The SigLIP checkpoint."""
        return self.folder / "base"

    @property
    def is_tiny(self) -> bool:
        """Whether this is the rehearsal."""
        return self.size == TINY

    def settle(self) -> None:
        """Wait for the GPU."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> float | None:
        """The most memory that torch had on the GPU in this process; None on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None

    def dataset(self) -> Any:
        """The photographs as a split."""
        from eval.dataset.retrieval_set import load_split
        from eval.manifest.manifest import read_manifest

        return load_split(read_manifest(self.manifest), None)


def prepare(place: Place) -> None:
    """Draw the photographs and write the checkpoint: SigLIP base at 224 pixels, or a tiny one."""
    from benchmarks.base_size import write_base
    from benchmarks.speed.pictures import photographs
    from train.config.model import ScratchConfig
    from train.model.random_init import write_scratch

    photographs(place.folder, place.size.num_photographs, place.size.photograph)
    if place.is_tiny:
        tiny = ScratchConfig(image_size=16, patch_size=8, width=32, num_layers=2, num_heads=2, vocab_size=96, num_tokens=12)
        write_scratch(place.base, tiny, place.dataset(), seed=1)
    else:
        write_base(place.base, place.manifest, place.folder)


def stepper_of(place: Place, changes: dict[str, Any], batch_size: int, device: Any) -> tuple[Any, Any]:
    """(what takes steps on a device, the batch of step 1).

    Args:
        changes: of STEPS: precision; cached: a quarter of the batch at once; mined: captions of each image; compile.
    """
    import contextlib

    import numpy as np
    import torch

    from eval.process_group import use_exact_float32
    from eval.processes import Processes
    from train.config.job import JobConfig
    from train.data.batches import BatchBuilder
    from train.data.caption_pool import CaptionPool
    from train.data.negatives import Negatives
    from train.data.order import BatchOrder
    from train.model.siglip import build_model, make_optimizer
    from train.siglip.step import Stepper

    use_exact_float32()
    num_mined, precision = changes.get("mined", 0), changes["precision"]
    train = {
        "max_steps": 1000,
        "batch_size": batch_size,
        "micro_batch_size": batch_size // 4 if changes.get("cached") else None,
        "learning_rate": 1e-6,
        "precision": precision,
        "eval_every_steps": 1000,
        "checkpoint_every_steps": 1000,
    } | ({"compile": True} if changes.get("compile") else {})
    mining = {"mine_every_steps": 1000, "negatives_per_image": num_mined, "weight": 0.3, "mined_scope": "all"} if num_mined else None
    record = {"name": "gpu", "model": {"base": str(place.base)}, "data": {"source": str(place.manifest)}, "train": train, "mining": mining}
    job = JobConfig.model_validate(record)
    dataset, processes = place.dataset(), Processes()
    negatives = None
    if num_mined:  # captions of the next images
        offsets = np.arange(dataset.num_images + 1) * num_mined
        captions = (np.arange(offsets[-1]) * 5 // num_mined + 7) % dataset.num_captions
        zeros = np.zeros(len(captions), dtype=np.float32)
        negatives = Negatives("made-up", offsets, captions, np.ones(len(captions), dtype=np.int64), zeros, zeros)
    tuned = build_model(job.model, str(job.model.base), 0)
    tuned.siglip.to(device)
    autocast = contextlib.nullcontext if precision == "fp32" else lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    stepper = Stepper(job, tuned, make_optimizer(tuned, job.train), dataset, processes, autocast)
    order = BatchOrder(dataset.num_images, batch_size, 0)
    return stepper, BatchBuilder(CaptionPool(dataset), tuned.inputs, order, processes, negatives=negatives)[1]


def measure_steps(place: Place, name: str) -> dict[str, Any]:
    """Seconds of a step, the median after three to warm up, and what that is of the GPU's rate.

    Raises:
        RuntimeError: it is to be compiled, and this version has no train.compile.
    """
    import torch

    from benchmarks.speed.flops import tower_flops
    from train.config.job import TrainConfig

    changes, batch_size = STEPS[name], place.size.batch
    if changes.get("compile") and "compile" not in TrainConfig.model_fields:
        raise RuntimeError("this version has no train.compile")
    stepper, batch = stepper_of(place, changes, batch_size, place.device)
    if torch.cuda.is_available() and place.device.type == "cuda":  # as the loader leaves it
        batch = replace(batch, pixels_b=batch.pixels_b.pin_memory(), token_ids_cL=batch.token_ids_cL.pin_memory())
    seconds, first = [], 0.0
    for step in range(1, 4 + place.size.steps):
        place.settle()
        began = time.perf_counter()
        stepper.train_step(replace(batch, step=step))
        place.settle()
        seconds.append(time.perf_counter() - began)
        first = first or seconds[0]
    flops, texts = tower_flops(stepper._tuned.siglip.config), 1 + changes.get("mined", 0)
    taken = statistics.median(seconds[3:])
    needed = 3 * batch_size * (flops["image"] + texts * flops["text"])  # the second forward pass of cached micro-batches is overhead
    return {
        "seconds": taken,
        "spread": [min(seconds[3:]), max(seconds[3:])],
        "first": first,
        "pairs_per_second": batch_size / taken,
        "flops": needed / taken,
        "peak_gib": place.peak_gib(),
    }


def measure_refresh(place: Place) -> dict[str, Any]:
    """Seconds to embed the photographs and their captions and to mine: with pictures decoded by workers, as in a run."""
    from eval.execution import Execution
    from train.config.mining import MiningConfig
    from train.data.caption_pool import CaptionPool
    from train.mining.candidates import Retriever
    from train.mining.mine import mine
    from train.model.siglip import TunedModel

    tuned, dataset = TunedModel.load(str(place.base)), place.dataset()
    tuned.siglip.to(place.device).eval()
    half: dict[str, Any] = {"precision": "bf16"} if hasattr(Execution, "precision") else {}
    execution = Execution(device=place.device, num_workers=0 if place.is_tiny else os.cpu_count() or 1, **half)
    config = MiningConfig(mine_every_epochs=1, negatives_per_image=2, pool_top_k=16)
    began = time.perf_counter()
    retriever, folder = Retriever(tuned.siglip, tuned.inputs), place.folder / "shards"
    negatives, _ = mine(retriever, CaptionPool(dataset), config, folder=folder, execution=execution)
    place.settle()
    seconds = time.perf_counter() - began
    found = {"images": dataset.num_images, "captions": dataset.num_captions, "precision": half.get("precision", "fp32")}
    return found | {"seconds": seconds, "num_mined": len(negatives.captions_N), "peak_gib": place.peak_gib()}


def measure_reranking(place: Place) -> dict[str, Any]:
    """Pairs a second of BLIP base (or a tiny one) in float32 and bf16, and how far the scores are apart."""
    import torch

    from benchmarks.reranking_at_size import base_size_cross_encoder
    from eval.process_group import use_exact_float32
    from rerank.scorers.blip.scorer import BlipScorer
    from rerank.scorers.load import load_scorer
    from rerank.scorers.scorer import ScorerSettings

    use_exact_float32()
    dataset, found, scores = place.dataset(), {}, {}
    captions = list(dataset.captions)[: place.size.rerank_captions]
    for precision in ("float32", "bfloat16"):
        settings = ScorerSettings(precision=precision)
        folder = place.folder / f"blip-{precision}"
        if place.is_tiny:
            from tests.tiny_blip import write_tiny_blip

            write_tiny_blip(folder)
            scorer = load_scorer(str(folder), device=place.device, settings=settings)
        else:
            folder.mkdir()
            scorer = BlipScorer(base_size_cross_encoder(list(dataset.captions), folder), device=place.device, settings=settings)
        with torch.inference_mode():
            pictures = [dataset.load_image(image) for image in range(4)]
            scores[precision] = scorer.score(pictures[0], captions)
            place.settle()
            began = time.perf_counter()
            for picture in pictures[1:]:
                scorer.score(picture, captions)
            place.settle()
        found[precision] = 3 * len(captions) / (time.perf_counter() - began)
    gap = float(abs(scores["float32"] - scores["bfloat16"]).max())
    return {"pairs_per_second": found, "largest_difference": gap, "peak_gib": place.peak_gib()}


def measure_equality(place: Place) -> dict[str, Any]:
    """Losses of three steps in float32 on the device and on the CPU, and their largest relative difference."""
    import torch

    losses = {}
    for device in (place.device, torch.device("cpu")):
        stepper, batch = stepper_of(place, {"precision": "fp32", "mined": 1}, 8, device)
        losses[device.type if device is place.device else "cpu again"] = [
            stepper.train_step(replace(batch, step=step)).loss for step in range(1, 4)
        ]
    one, other = losses.values()
    return {"losses": losses, "largest_difference": max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))}


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "refresh": measure_refresh,
    "reranking": measure_reranking,
    "equality": measure_equality,
}


def run_part(name: str, words: list[str], seconds: float) -> dict[str, Any]:
    """What a part gave, in a process of its own; {"fault": why} where it gave nothing in its time."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--measure", name, *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        try:
            said, errors = child.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)  # with its workers
            if isinstance(error, subprocess.TimeoutExpired):
                return {"fault": f"not done in its {seconds:.0f} s"}
            raise
    if child.returncode:
        lines = [line for line in errors.splitlines() if line.strip()] or [f"exit code {child.returncode}"]
        return {"fault": lines[-1][:300]}
    return dict(json.loads(said.splitlines()[-1])) if said.strip() else {}


def measured_page(found: dict[str, dict[str, Any]], asked: argparse.Namespace, machine: str, peak: float | None) -> list[str]:
    """What was measured, as Markdown."""
    lines = [
        f"`python -m benchmarks.gpu {' '.join(sys.argv[1:])}`; {machine}.",
        "",
        f"Steps of {size_of(asked)}; MFU: what the towers need, forward and twice backward, over the peak"
        + (f" of {peak / 1e12:,.0f} TFLOP/s in bf16." if peak else ", which is not known for this device."),
        "",
        "| part | pairs/s | s a step (smallest to largest) | first step, s | TFLOP/s | MFU | peak memory, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in STEPS:
        one = found.get(name, {})
        if "seconds" in one:
            low, high = one["spread"]
            share = f"{one['flops'] / peak:.2f}" if peak and name.endswith("bf16") else ""
            figures = f"{one['seconds']:.4f} ({low:.4f} to {high:.4f}) | {one['first']:.1f} | {one['flops'] / 1e12:,.1f} | {share}"
            lines.append(f"| {name} | {one['pairs_per_second']:,.0f} | {figures} | {_gib(one)} |")
    lines.append("")
    if "seconds" in (one := found.get("refresh", {})):
        size = f"{one['images']:,} images with {one['captions']:,} captions"
        lines.append(f"- Refresh of mining, {one['precision']}: {size} in {one['seconds']:.1f} s, pictures decoded meanwhile{_peak(one)}.")
    if "pairs_per_second" in (one := found.get("reranking", {})):
        rates = ", ".join(f"{rate:,.0f} pairs/s in {precision}" for precision, rate in one["pairs_per_second"].items())
        lines.append(f"- Reranking: {rates}; scores differ by at most {one['largest_difference']:.1e}{_peak(one)}.")
    if "losses" in (one := found.get("equality", {})):
        lines.append(f"- Equality: losses of three steps in float32 differ from the CPU's by at most {one['largest_difference']:.1e}.")
    lines += [f"- {name} was not measured: {one['fault']}." for name, one in found.items() if "fault" in one]
    return lines


def size_of(asked: argparse.Namespace) -> str:
    """What is trained, in words."""
    return f"a tiny model, batch {TINY.batch}" if asked.tiny else f"SigLIP base at 224 pixels, random weights, batch {FULL.batch}"


def _gib(one: dict[str, Any]) -> str:
    return "" if one.get("peak_gib") is None else f"{one['peak_gib']:.1f}"


def _peak(one: dict[str, Any]) -> str:
    return f"; at most {_gib(one)} GiB" if _gib(one) else ""


MFU = (0.25, 0.35)
_PEAK, _FP32_PEAK, _NVLINK = PEAK_TFLOPS["bf16"] * 1e12, PEAK_TFLOPS["fp32"] * 1e12, 450e9  # of an H200 SXM by its data sheet; one way
_BATCH, _GPUS = 256, 8


def estimate() -> tuple[str, list[str]]:
    """(conclusion, lines) of what can be counted without a GPU."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    from benchmarks.speed.flops import tower_flops

    with torch.device("meta"):
        num_weights = sum(parameter.numel() for parameter in SiglipModel(SiglipConfig()).parameters())
    flops = tower_flops()
    pair = 3 * sum(flops.values())
    slow, fast = (share * _PEAK / pair for share in MFU)
    rounded = f"{round(slow, -2):,.0f} to {round(fast, -2):,.0f}"
    first = f"No GPU was at hand, so this is counted, not measured: an H200 would train SigLIP base at {rounded} pairs/s."
    refresh = COCO[0] * flops["image"] + COCO[1] * flops["text"]
    search = 2 * COCO[0] * COCO[1] * 768
    share, whole = SHARE_OF_PEAK, cases()
    sums = 2 * (_GPUS - 1) / _GPUS * 4 * num_weights
    rows = [
        ("weights of SigLIP base at 224 pixels", f"{num_weights / 1e6:.1f} M", "counted on the meta device"),
        ("a picture forward, a caption of 64 tokens forward", f"{flops['image'] / 1e9:.1f}, {flops['text'] / 1e9:.1f} GFLOP", "counted"),
        ("a pair in a step", f"{pair / 1e9:.0f} GFLOP", "forward, and twice that backward"),
        ("pairs/s", f"{rounded} ({slow:,.0f} to {fast:,.0f})", f"assumed: MFU {MFU[0]} to {MFU[1]} of the peak"),
        (f"a step of {_BATCH} pairs", f"{1e3 * _BATCH / fast:.0f} to {1e3 * _BATCH / slow:.0f} ms", "from the line above"),
        ("cores that decode for one GPU", f"{slow / PICTURES_A_CORE:.0f} to {fast / PICTURES_A_CORE:.0f}", _cores()),
        ("host waits of a steady step", "2", "counted by tests/integration/train/test_pretend_gpu.py, which asserts it"),
        ("pictures to the GPU", f"{_BATCH * 3 * 224**2 / 1e6:.0f} MB a step", "uint8; 4 times that as float32"),
        ("weights, gradients, AdamW's state", f"{16 * num_weights / 1e9:.1f} GB", "float32, 16 bytes a weight; activations come on top"),
        (f"gradients summed over {_GPUS} GPUs", f"{sums / 1e9:.2f} GB sent by each", f"{1e3 * sums / _NVLINK:.1f} ms at NVLink's 450 GB/s"),
        (f"texts gathered over {_GPUS} GPUs", f"{4 * 768 * _BATCH * (_GPUS - 1) / 1e6:.1f} MB to each", "float32"),
        (
            f"a refresh of mining, {COCO[0]:,} images and {COCO[1]:,} captions: the embedding alone",
            f"{refresh / 1e15:.1f} PFLOP: {refresh / share['bf16'] / _PEAK:.0f} s in bf16, "
            f"{refresh / share['fp32'] / _FP32_PEAK:.0f} s in float32",
            f"at {share['bf16']:.0%} and {share['fp32']:.0%} of the peaks",
        ),
        ("its search, exact", f"{search / 1e12:.0f} TFLOP: {search / share['fp32'] / _FP32_PEAK:.0f} s", f"float32 at {share['fp32']:.0%}"),
        ("its pictures", f"{COCO[0] / 16 / PICTURES_A_CORE:.0f} s", f"16 cores at {PICTURES_A_CORE:.0f} a second each, before a cache"),
        (
            "all of it, each stage as long as the slower of host and GPU",
            f"{whole['now: bf16'].seconds:.0f} s in bf16, {whole['before: fp32'].seconds:.0f} s in float32",
            "`python -m benchmarks.refresh_cost`: pictures, tokenizer, search and rules are in it",
        ),
    ]
    lines = [
        "`python -m benchmarks.gpu` on a machine without a GPU. The same command on a machine with one measures, and replaces this page.",
        f"Taken from the data sheet of an H200 SXM: {_PEAK / 1e12:.0f} TFLOP/s of dense bf16 products, {_FP32_PEAK / 1e12:.0f} in float32.",
        "",
        "| what | figure | from |",
        "|---|---|---|",
        *(f"| {what} | {figure} | {source} |" for what, figure, source in rows),
    ]
    return first, lines


def _cores() -> str:
    return f"{PICTURES_A_CORE:.0f} photographs of 640 x 480 a second and core, decoded and resized (results/pictures.md)"


def main() -> int:
    """The command; 1 where a part gave nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=[[], *_ORDER], metavar="PART", help=f"{', '.join(_ORDER)} (default: all)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: a rehearsal of the script")
    parser.add_argument("--device", help="default: cuda; without a GPU nothing is measured unless a device is named")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "gpu.md", help="default results/gpu.md")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    import torch

    name = asked.device or ("cuda" if torch.cuda.is_available() else None)
    if name is None:
        write(asked, *estimate())
        return 0
    size = TINY if asked.tiny else FULL
    if asked.measure:
        place = Place(asked.folder, torch.device(name), size)
        print(json.dumps(measure_steps(place, asked.measure) if asked.measure in STEPS else PARTS[asked.measure](place)))
        return 0
    found, began = {}, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmarks-gpu-") as folder:
        prepare(Place(Path(folder), torch.device(name), size))
        words = ["--folder", folder, "--device", name, *(["--tiny"] if asked.tiny else [])]
        for part in asked.part or _ORDER:
            left = TOTAL_SECONDS - (time.monotonic() - began)
            found[part] = run_part(part, words, min(LIMITS[part], left)) if left > 10 else {"fault": "no time was left for it"}
            print(f"{time.strftime('%X')} {part}: {json.dumps(found[part])}", flush=True)
    card = torch.cuda.get_device_name() if name.startswith("cuda") else "CPU"
    peak = next((rate for word, rate in BF16_PEAKS.items() if word in card), None)
    plain = found.get("plain-bf16", {}).get("pairs_per_second")
    first = f"{card}: {size_of(asked)}, takes {plain:,.0f} pairs/s in bf16." if plain else f"{card}: the plain step was not measured."
    write(asked, first, measured_page(found, asked, f"{card}, torch {torch.__version__}", peak))
    return int(any("fault" in one for one in found.values()))


def write(asked: argparse.Namespace, first: str, lines: list[str]) -> None:
    """The page; that of results/ also gets its conclusion into results/README.md."""
    head = ["# On a GPU", "", f"**{first}**", ""]
    if asked.output.resolve() == ROOT / "results" / "gpu.md":
        index = INDEX.read_text(encoding="utf-8")
        INDEX.write_text(re.sub(r"(?m)^(\| \[gpu\]\(gpu\.md\) \| ).* \|$", lambda match: f"{match[1]}{first} |", index), encoding="utf-8")
        head = title_lines("gpu", "On a GPU")
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    print(asked.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())

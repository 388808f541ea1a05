"""A base-size SigLIP (203 M parameters, random weights in the hub's format) trains a few steps on photographs at 224 px: memory and speed.

    python -m benchmarks.base_size --steps 4 --batch-size 8 --output results/base-size.md
    python -m benchmarks.base_size --device cuda --precision bf16 --batch-size 256 --steps 30 --mining --output results/base-size-gpu.md

Each arm is a `python -m train` of its own; peak memory is what the system says of that process (and, on a GPU, what torch says of it).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import read_manifest
from train.config.model import ScratchConfig
from train.model.random_init import learn_tokenizer

PHOTOGRAPHS = Path("../shared/data/flickr8k_originals")
ARMS: dict[str, dict[str, Any]] = {
    "full": {"model.lora": None, "train.learning_rate": 5e-6},
    "full, gradient checkpointing": {"model.lora": None, "train.learning_rate": 5e-6, "model.gradient_checkpointing": True},
    "LoRA r=16": {"model.lora": {"rank": 16, "alpha": 32}, "train.learning_rate": 5e-5},
    "image tower frozen": {"model.freeze": ["image"], "train.learning_rate": 5e-6},
}


def write_manifest(folder: Path) -> Path:
    """The 120 photographs as a manifest with splits: 96 to train on, 24 to evaluate on."""
    rows = [json.loads(line) for line in (PHOTOGRAPHS / "captions.jsonl").read_text(encoding="utf-8").splitlines() if line.strip()]
    path = folder / "photographs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            row["split"] = "val" if number % 5 == 0 else "train"
            file.write(json.dumps(row) + "\n")
    return path


def write_base(folder: Path, manifest: Path) -> int:
    """A checkpoint with the very configuration of google/siglip-base-patch16-224 and random weights. Returns the number of parameters."""
    folder.mkdir()
    data = read_manifest(manifest, image_root=PHOTOGRAPHS)
    tokenizer = learn_tokenizer(folder, ScratchConfig(vocab_size=1000, num_tokens=64), load_split(data, "train"))
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig())  # transformers' defaults are the base model's
    with torch.no_grad():
        model.logit_scale.fill_(4.77)
        model.logit_bias.fill_(-12.9)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil().save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def run_arm(name: str, changes: dict[str, Any], base: Path, manifest: Path, runs: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Train one arm in a process of its own. Returns its figures."""
    config: dict[str, Any] = {
        "name": "".join(c if c.isalnum() else "-" for c in name),
        "runs_folder": str(runs),
        "model": {"base": str(base)},
        "data": {"source": str(manifest), "image_root": str(PHOTOGRAPHS), "test_split": None, "num_workers": asked.num_workers},
        "train": {
            "max_steps": asked.steps,
            "batch_size": asked.batch_size,
            "warmup_steps": 0,
            "precision": asked.precision,
            "eval_every_steps": 10**6,
            "checkpoint_every_steps": 10**6,
            "keep_checkpoints": 1,
        },
        "mining": {"mine_every_steps": max(1, asked.steps // 2), "negatives_per_image": 2, "weight": 0.2} if asked.mining else None,
    }
    for path, value in changes.items():
        section, key = path.split(".")
        config[section][key] = value
    file = runs / f"{config['name']}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "train", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"arm {name!r} failed:\n{errors[-3000:]}")
    lines = [json.loads(line) for line in (runs / config["name"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    timed = sorted(line["seconds"] for line in steps[1:])
    return {
        "arm": name,
        "steps": len(steps),
        "peak_gib": usage.ru_maxrss / 2**20,
        "peak_gpu_gib": steps[-1].get("peak_gpu_gib"),
        "median_step_seconds": timed[len(timed) // 2],
        "step_spread": (timed[0], timed[-1]),
        "data_wait_share": sum(line["data_wait_share"] for line in steps[1:]) / len(steps[1:]),
        "losses": (steps[0]["loss"], steps[-1]["loss"]),
        "seconds": time.perf_counter() - started,
    }


def table(rows: list[dict[str, Any]], asked: argparse.Namespace, num_parameters: int) -> str:
    """The results as Markdown."""
    first = rows[0]["median_step_seconds"]
    text = [
        "# A base-size SigLIP in training: memory and speed",
        "",
        f"{num_parameters / 1e6:.1f} M parameters, random weights, 224 px photographs, batch {asked.batch_size}, {asked.precision}, "
        f"{asked.steps} steps, mining {'on' if asked.mining else 'off'}; torch {torch.__version__}, "
        + (torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads")
        + ". Times are of a shared machine: read the ratios.",
        "",
        f"Command: `python -m benchmarks.base_size {' '.join(sys.argv[1:])}`",
        "",
        "| arm | peak memory of the process, GiB | peak on the GPU, GiB | median step, s (least to most) | ratio to full | data wait "
        "| loss, first to last |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["step_spread"]
        gpu = "" if row["peak_gpu_gib"] is None else f"{row['peak_gpu_gib']:.1f}"
        text.append(
            f"| {row['arm']} | {row['peak_gib']:.1f} | {gpu} | {row['median_step_seconds']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['median_step_seconds'] / first:.2f} | {100 * row['data_wait_share']:.1f}% "
            f"| {row['losses'][0]:.3f} to {row['losses'][1]:.3f} |"
        )
    return "\n".join(text) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--mining", action="store_true")
    parser.add_argument("--arm", action="append", choices=list(ARMS))
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="base-size-"))
    try:
        manifest = write_manifest(work)
        num_parameters = write_base(work / "base", manifest)
        rows = [run_arm(name, ARMS[name], work / "base", manifest, work, asked) for name in asked.arm or ARMS]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(table(rows, asked, num_parameters), encoding="utf-8")
    print(asked.output.read_text(encoding="utf-8"))
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()

"""Peak memory of training a base-size SigLIP (203 M parameters, random weights in the hub's format) a few steps on photographs at 224 px.

    python -m benchmarks.base_size PHOTOGRAPHS --steps 4 --batch-size 8 --output results/base-size.md

PHOTOGRAPHS is a folder of pictures with a captions.jsonl. Each way to train is a `python -m train` of its own; peak memory is what the
system says of that process (and, on a GPU, what torch says of it).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

from benchmarks.conclusion import title_lines
from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import read_manifest
from train.config.model import ScratchConfig
from train.model.random_init import learn_tokenizer

WAYS: dict[str, dict[str, Any]] = {
    "full": {"model.lora": None, "train.learning_rate": 5e-6},
    "full, gradient checkpointing": {"model.lora": None, "train.learning_rate": 5e-6, "model.gradient_checkpointing": True},
    "LoRA r=16": {"model.lora": {"rank": 16, "alpha": 32}, "train.learning_rate": 5e-5},
    "image tower frozen": {"model.freeze": ["image"], "train.learning_rate": 5e-6},
}


def write_manifest(photographs: Path, folder: Path) -> Path:
    """The photographs as a manifest with splits: four of five to train on, the others to evaluate on."""
    rows = [json.loads(line) for line in (photographs / "captions.jsonl").read_text(encoding="utf-8").splitlines() if line.strip()]
    path = folder / "photographs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            row["split"] = "val" if number % 5 == 0 else "train"
            file.write(json.dumps(row) + "\n")
    return path


def write_base(folder: Path, manifest: Path, photographs: Path) -> int:
    """A checkpoint with the very configuration of google/siglip-base-patch16-224 and random weights. Returns the number of parameters."""
    folder.mkdir()
    data = read_manifest(manifest, image_root=photographs)
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


def train_one_way(name: str, changes: dict[str, Any], base: Path, manifest: Path, runs: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Train in a process of its own and return the peak memory."""
    config: dict[str, Any] = {
        "name": "".join(c if c.isalnum() else "-" for c in name),
        "runs_folder": str(runs),
        "model": {"base": str(base)},
        "data": {
            "source": str(manifest),
            "image_root": str(asked.photographs.absolute()),
            "test_split": None,
            "num_workers": asked.num_workers,
        },
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
    process = subprocess.Popen([sys.executable, "-m", "train", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name!r} failed:\n{errors[-3000:]}")
    lines = [json.loads(line) for line in (runs / config["name"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    return {"way": name, "peak_gib": usage.ru_maxrss / 2**20, "peak_gpu_gib": steps[-1].get("peak_gpu_gib")}


def table(rows: list[dict[str, Any]], asked: argparse.Namespace, num_parameters: int) -> str:
    """The results as Markdown."""
    most = rows[0]["peak_gib"]
    text = [
        *title_lines("base-size", "Peak memory of training a base-size SigLIP"),
        f"{num_parameters / 1e6:.1f} M parameters, random weights, 224 px photographs, batch {asked.batch_size}, {asked.precision}, "
        f"{asked.steps} steps, mining {'on' if asked.mining else 'off'}; torch {torch.__version__}, "
        + (torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads")
        + ".",
        "",
        f"Command: `python -m benchmarks.base_size {' '.join(sys.argv[1:])}`",
        "",
        "| what trains | peak memory of the process, GiB | share of the first row | peak on the GPU, GiB |",
        "|---|---|---|---|",
    ]
    for row in rows:
        gpu = "" if row["peak_gpu_gib"] is None else f"{row['peak_gpu_gib']:.1f}"
        text.append(f"| {row['way']} | {row['peak_gib']:.1f} | {100 * row['peak_gib'] / most:.0f}% | {gpu} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--mining", action="store_true")
    parser.add_argument("--way", action="append", choices=list(WAYS))
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="base-size-"))
    try:
        manifest = write_manifest(asked.photographs.absolute(), work)
        num_parameters = write_base(work / "base", manifest, asked.photographs)
        rows = [train_one_way(name, WAYS[name], work / "base", manifest, work, asked) for name in asked.way or WAYS]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(table(rows, asked, num_parameters), encoding="utf-8")
    print(asked.output.read_text(encoding="utf-8"))
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()

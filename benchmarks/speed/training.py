"""Rows of a run: a step at base size, what a checkpoint adds to the steps, time to the first update.

Ours is `python -m train` itself, with its loader, checks and records; the moments at which an optimizer's step ends are noted, and the
process ends after the last one that is asked for. The peers take bare steps from the same weights on the same pictures and captions.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.speed.pictures import photographs

BATCH, CHECKPOINT_BATCH, RATE = 8, 2, 5e-6
STEPS = 4
"""Of a measurement at base size; the last two count. In the first two all of a process's memory is new, and a run's first checkpoint is
still being written beside them."""


def prepare(row: str, place: Path) -> None:
    """Photographs, and a checkpoint of SigLIP base's architecture with random weights."""
    from benchmarks.base_size import write_base, write_manifest

    if row == "first-step" or (place / "base-size").exists():
        return
    folder = photographs(place / "base-size", 40, (320, 240))
    write_base(folder / "base", write_manifest(folder, folder), folder)


def measure(row: str, system: str, place: Path) -> dict[str, Any]:
    """One measurement."""
    if row == "first-step":
        return first_step(place)
    if row == "checkpoint":
        return checkpoint(place)
    precision = row.removeprefix("step-")
    if system == "ours":
        ends = ends_of_steps(base_size_run(place, f"step-{precision}", BATCH, STEPS, train={"precision": precision}), STEPS)
        seconds = (ends[-1] - ends[-3]) / 2
    else:
        seconds = peer_step(system, place / "base-size", precision)
    from benchmarks.speed.flops import step_flops

    return {"seconds": seconds, "amount": BATCH, "work": {"float32" if precision == "fp32" else "bfloat16": step_flops(BATCH)}}


def first_step(place: Path) -> dict[str, Any]:
    """From the start of this process to the end of the demo's first update."""
    started = psutil.Process().create_time()
    ends_of_steps(["configs/demo.yaml", f"name=first-{os.getpid()}", f"runs_folder={place / 'runs'}"], 1)
    return {"seconds": time.time() - started}


def checkpoint(place: Path) -> dict[str, Any]:
    """What the three steps after a run's second checkpoint take longer than its fastest three. Weights and optimizer state, 12 bytes a
    parameter, are written to the disk. Of the first one the memory is new, which some machines give out at the speed of a disk."""
    ends = ends_of_steps(base_size_run(place, "checkpoint", CHECKPOINT_BATCH, 9, train={"checkpoint_every_steps": 3}), 9)
    fastest = min(end - before for before, end in pairwise(ends))
    (weights,) = (place / "base-size" / "base").glob("*.safetensors")
    return {"seconds": max(0.0, ends[8] - ends[5] - 3 * fastest), "work": {"disk": 3 * weights.stat().st_size}}


def base_size_run(place: Path, name: str, batch_size: int, steps: int, *, train: dict[str, Any]) -> list[str]:
    """The words of a run at base size."""
    folder = place / "base-size"
    config = {
        "name": f"{name}-{os.getpid()}",
        "runs_folder": str(place / "runs"),
        "curves": False,
        "model": {"base": str(folder / "base")},
        "data": {"source": str(folder / "photographs.jsonl"), "image_root": str(folder), "val_split": None, "test_split": None},
        "train": {
            "max_steps": steps + 2,
            "batch_size": batch_size,
            "learning_rate": RATE,
            "warmup_steps": 0,
            "eval_every_steps": 10**6,
            "checkpoint_every_steps": 10**6,
            "keep_checkpoints": 1,
        }
        | train,
    }
    path = place / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [str(path)]


class _Enough(BaseException):
    """Enough steps were taken; no handler of errors holds it."""


def ends_of_steps(words: list[str], number: int) -> list[float]:
    """When each of the first `number` updates of a run ended."""
    from train.__main__ import run

    return _ends(lambda: run(words), number)


def _ends(work: Callable[[], Any], number: int) -> list[float]:
    """When each of the first `number` steps of any optimizer in here ended, seconds of time.perf_counter.

    Raises:
        RuntimeError: there were fewer.
    """
    ends: list[float] = []

    def note(*_: object) -> None:
        ends.append(time.perf_counter())
        if len(ends) == number:
            raise _Enough

    hook, printed = register_optimizer_step_post_hook(note), sys.stdout
    sys.stdout = sys.stderr
    try:
        work()
    except _Enough:
        return ends
    finally:
        hook.remove()
        sys.stdout = printed
    raise RuntimeError(f"expected {number} updates, found {len(ends)}")


def peer_step(system: str, folder: Path, precision: str) -> float:
    """Seconds of one of the last two steps."""
    from transformers import SiglipModel

    model = SiglipModel.from_pretrained(folder / "base", trust_remote_code=False).train()
    rows = inputs(folder)
    if system == "open_clip":
        ends = _ends(lambda: open_clip_steps(model, rows, precision), STEPS)
    else:
        ends = _ends(lambda: trainer_steps(model, rows, precision), STEPS)
    return (ends[-1] - ends[-3]) / 2


def inputs(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Pixel values and token ids of the batches, row by row."""
    from PIL import Image
    from transformers import SiglipImageProcessorPil, SiglipTokenizer

    processor, tokenizer = SiglipImageProcessorPil(), SiglipTokenizer.from_pretrained(folder / "base", trust_remote_code=False)
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()[: STEPS * BATCH]]
    pixels = processor(images=[Image.open(folder / line["image"]) for line in lines], return_tensors="pt")["pixel_values"]
    words = [line["captions"][0] for line in lines]
    tokens = tokenizer(words, padding="max_length", max_length=64, truncation=True, return_tensors="pt")["input_ids"]
    return [{"pixel_values": picture, "input_ids": ids} for picture, ids in zip(pixels, tokens, strict=True)]


def open_clip_steps(model: Any, rows: list[dict[str, torch.Tensor]], precision: str) -> None:
    """What open_clip's train_one_epoch does with a batch, with the SigLipLoss of its loss.py: forward under autocast, loss, backward,
    clipping, AdamW, scale clamped. The file is loaded alone: the package asks for a torchvision of torch's own build."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.submodule_search_locations[0]) / "loss.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss_of = module.SigLipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        pixels, tokens = (torch.stack([row[name] for row in batch]) for name in ("pixel_values", "input_ids"))
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            images = torch.nn.functional.normalize(model.vision_model(pixel_values=pixels).pooler_output, dim=-1)
            texts = torch.nn.functional.normalize(model.text_model(input_ids=tokens).pooler_output, dim=-1)
            loss = loss_of(images, texts, model.logit_scale.exp(), model.logit_bias)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # ln 100, as open_clip does
        loss.item()


def trainer_steps(model: Any, rows: list[dict[str, torch.Tensor]], precision: str) -> None:
    """What transformers' example run_clip does: its Trainer, and the model's own loss."""
    from transformers import Trainer, TrainingArguments

    def joined(batch: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        return {name: torch.stack([row[name] for row in batch]) for name in batch[0]} | {"return_loss": True}

    arguments = TrainingArguments(
        max_steps=STEPS + 1,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        bf16=precision == "bf16",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=joined).train()

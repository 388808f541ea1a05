"""Loss and gradients of steps on this number of processes: python -m tests.integration.train.gradients MANIFEST BASE OUTPUT [...].

Each case takes the first step, or the first few, of a job through train/siglip/step.py itself; rank 0 writes OUTPUT/CASE.npz. Run plainly
it is one process; under torchrun, on one host or several, it is the processes torchrun starts. For test_batch_division.py and
benchmarks/batch_division.py.
"""

import argparse
import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from tests.small_job import load
from train.config.job import JobConfig
from train.data.batches import BatchBuilder, Parts
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.data.order import BatchOrder
from train.model.siglip import TunedModel, build_model, make_optimizer
from train.optim import update
from train.siglip.step import Stepper

SEED = 7


@dataclass(frozen=True)
class Case:
    """What is compared: arithmetic, scope of the mined columns (None: nothing mined), LoRA, frozen towers, a distillation, captions."""

    name: str
    double: bool
    mined_scope: str | None
    lora: bool = False
    freeze: tuple[str, ...] = ()
    distil: str | None = None
    ranking: bool = False
    captions_per_image: int = 1


CASES = [
    Case("float32-none", False, None),
    Case("float32-own", False, "own"),
    Case("float32-all", False, "all"),
    Case("float32-all-lora", False, "all", lora=True),
    Case("float64-none", True, None),
    Case("float64-own", True, "own"),
    Case("float64-all", True, "all"),
    Case("float64-own-lora", True, "own", lora=True),
    Case("float64-all-text-frozen", True, "all", freeze=("text",)),
    Case("float64-own-image-frozen", True, "own", freeze=("image",)),
    Case("float64-own-labels", True, "own", distil="labels"),
    Case("float64-all-lists", True, "all", distil="lists"),
    Case("float64-own-ranking", True, "own", ranking=True),
    Case("float64-none-several-captions", True, None, captions_per_image=2),
    Case("float64-all-several-captions", True, "all", captions_per_image=2),
    Case("float64-own-labels-several-captions", True, "own", distil="labels", captions_per_image=3),
    Case("float64-own-several-captions-text-frozen", True, "own", freeze=("text",), captions_per_image=2),
]


def config(case: Case, manifest: str, base: str, batch_size: int, *, micro_batch_size: int | None = None, num_steps: int = 1) -> JobConfig:
    """The configuration of a case; gradients are not clipped."""
    mining: dict[str, Any] | None = None
    if case.mined_scope is not None:
        mining = {"mine_every_steps": 1, "weight": 0.7, "mined_scope": case.mined_scope}
    if mining is not None and case.ranking:
        mining["ranking"] = {"margin": 0.5, "temperature": 2.0}
    if mining is not None and case.distil is not None:
        mining["distil"] = {"model": "none is read", "form": case.distil, "strength": 0.6, "temperature": 2.0}
    return JobConfig.model_validate(
        {
            "name": case.name,
            "seed": SEED,
            "model": {"base": base, "lora": {"rank": 3, "alpha": 6} if case.lora else None, "freeze": list(case.freeze)},
            "data": {"source": manifest},
            "train": {
                "max_steps": num_steps + 1,
                "batch_size": batch_size,
                "captions_per_image": case.captions_per_image,
                "micro_batch_size": micro_batch_size,
                "learning_rate": 1e-3,
                "max_grad_norm": None,
                "eval_every_steps": 1,
                "checkpoint_every_steps": 1,
            },
            "mining": mining,
        }
    )


def model_of(case: Case, job: JobConfig) -> TunedModel:
    """The model of a case, adapters (if any) away from their zero."""
    tuned = build_model(job.model, str(job.model.base), SEED)
    if case.double:
        tuned.siglip.double()
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.trainable():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    return tuned


def negatives_of(dataset: RetrievalSet, order: BatchOrder) -> Negatives:
    """Zero to three captions for each image of the first half of the batch, none for the second: a process of two has none.

    Some are true of other images of the batch, which the scope "all" must find; none is true of its own. A cross-encoder's logits of them,
    and of the images' own captions, are drawn.
    """
    draws = np.random.default_rng(0)
    mined: list[list[int]] = [[] for _ in range(dataset.num_images)]
    for image in order.images(1)[: order.batch_size // 2].tolist():
        drawn = draws.choice(dataset.num_captions, int(draws.integers(4)), replace=False)
        true = dataset.is_positive(np.array(image), dataset.caption_hash_C[drawn])
        mined[image] = drawn[~true].tolist()
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in mined])]).astype(np.int64)
    captions = np.array([caption for row in mined for caption in row], dtype=np.int64)
    zeros = np.zeros(len(captions), np.float32)
    logits_N, own_C = (3 * draws.standard_normal(count).astype(np.float32) for count in (len(captions), dataset.num_captions))
    table = Negatives("made", offsets, captions, np.ones(len(captions), np.int64), zeros, zeros)
    return replace(table, teacher_logits_N=logits_N, own_teacher_logits_C=own_C)


def take_steps(
    case: Case, manifest: str, base: str, processes: Processes, *, micro_batch_size: int | None = None, num_steps: int = 1
) -> dict[str, np.ndarray]:
    """Every gradient of the first step, by name; "loss": its terms and the number of mined captions; "losses": one a step."""
    dataset = load(Path(manifest))
    job = config(case, manifest, base, dataset.num_images, micro_batch_size=micro_batch_size, num_steps=num_steps)
    order = BatchOrder(dataset.num_images, dataset.num_images, SEED)
    tuned = model_of(case, job)
    stepper = Stepper(job, tuned, make_optimizer(tuned, job.train), dataset, processes, contextlib.nullcontext)
    negatives = negatives_of(dataset, order) if case.mined_scope else None
    parts = Parts(captions_per_image=case.captions_per_image)
    builder = BatchBuilder(CaptionPool(dataset), tuned.inputs, order, processes, parts=parts, negatives=negatives)
    if processes.world_size == 2:
        stepper.rehearse(builder[1])  # so that the order of the sums is known, and the step's begin while the backward pass runs
    result = stepper.train_step(builder[1])
    found: dict[str, Any] = {name: parameter.grad.numpy().copy() for name, parameter in tuned.trainable() if parameter.grad is not None}
    found["loss"] = np.array([result.loss, result.loss_in_batch, result.loss_mined, result.num_mined], dtype=np.float64)
    later = [stepper.train_step(builder[step]).loss for step in range(2, num_steps + 1)]
    return found | {"losses": np.array([result.loss, *later])}


def main() -> None:
    """Every case, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("manifest", "base", "output"):
        parser.add_argument(name)
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--num-steps", type=int, default=1)
    asked = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    processes = Processes.current()
    update._SEGMENT_BYTES = 1 << 10  # so that even a tiny model has several
    for case in CASES:
        found = take_steps(
            case, asked.manifest, asked.base, processes, micro_batch_size=asked.micro_batch_size, num_steps=asked.num_steps
        )  # fmt: skip
        if processes.is_main:
            np.savez(Path(asked.output) / f"{case.name}.npz", **found)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

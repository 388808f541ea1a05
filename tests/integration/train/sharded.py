"""A few steps with weights in parts and with whole ones: python -m tests.integration.train.sharded MANIFEST BASE OUTPUT, under torchrun.

Every process takes the same steps of the project's own twice, through train/siglip/step.py: a replica on each, then a part on each; before
the
first and after the last step the captions and images are embedded, as evaluation does. Rank 0 writes OUTPUT/CASE-{replicas,parts}.npz. For
test_sharding.py.
"""

import contextlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.tensor import DTensor

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import hash_weights
from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError
from eval.execution import Execution
from eval.processes import Processes
from eval.sharded import whole
from tests.integration.train.gradients import SEED, Case, config, model_of, negatives_of
from tests.small_job import load
from train.data.batches import BatchBuilder
from train.data.caption_pool import CaptionPool
from train.data.order import BatchOrder
from train.model.siglip import make_optimizer
from train.optim.fsdp import shard
from train.optim.loss_scale import LossScale
from train.siglip.step import Stepper

CASES = [
    Case("float64-all", True, "all"),
    Case("float32-own", False, "own"),
    Case("bf16-all", False, "all"),
    Case("float64-own-lora-text-frozen", True, "own", lora=True, freeze=("text",)),
    Case("fp16-all-image-frozen", False, "all", freeze=("image",)),
]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINTED = "float32-own"
"""Where the parts' activations are computed again in the backward pass, and the replicas' are not."""
NUM_STEPS = 4
MAX_GRAD_NORM = 0.5
"""Below the norm of every step, so that each is clipped."""


def take_steps(case: Case, manifest: str, base: str, processes: Processes, *, sharded: bool) -> dict[str, np.ndarray]:
    """Losses and norms of the steps, the gradients of the last, weights and moments after it, embeddings before the first and after it."""
    dataset = load(Path(manifest))
    job = config(case, manifest, base, dataset.num_images, num_steps=NUM_STEPS)
    job = job.model_copy(update={"train": job.train.model_copy(update={"max_grad_norm": MAX_GRAD_NORM})})
    order = BatchOrder(dataset.num_images, dataset.num_images, SEED)
    tuned = model_of(case, job)
    if sharded and case.name == CHECKPOINTED:
        tuned.siglip.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    sha256 = hash_weights(tuned.siglip)
    if sharded:
        shard(tuned.siglip, processes, torch.device("cpu"))
    assert hash_weights(tuned.siglip) == sha256
    parts = {name for name, weight in tuned.siglip.named_parameters() if isinstance(weight, DTensor)}
    assert parts == ({name for name, _ in tuned.siglip.named_parameters()} - {"logit_scale", "logit_bias"} if sharded else set())
    optimizer = make_optimizer(tuned, job.train)
    half = HALF.get(case.name[:4])
    autocast = contextlib.nullcontext if half is None else partial(torch.autocast, "cpu", half)
    stepper = Stepper(job, tuned, optimizer, dataset, processes, autocast)
    if half is torch.float16:
        stepper.update.loss_scale = LossScale(2.0**10)
    builder = BatchBuilder(CaptionPool(dataset), tuned.inputs, order, processes, negatives=negatives_of(dataset, order))

    execution = Execution(processes=processes)

    def embedded(when: str) -> dict[str, np.ndarray]:
        images = embed_images(tuned.siglip, tuned.inputs, dataset, execution=execution, block=24)
        texts = embed_captions(tuned.siglip, tuned.inputs, dataset.captions[:100], execution=execution)  # one block: one process has none
        return {f"images {when}": images, f"texts {when}": texts}

    found: dict[str, Any] = embedded("before")
    steps = [stepper.train_step(builder[step]) for step in range(1, NUM_STEPS + 1)]
    found["losses"], found["norms"] = np.array([step.loss for step in steps]), np.array([step.grad_norm for step in steps])
    for name, parameter in tuned.trainable():
        assert parameter.grad is not None
        found[f"gradient {name}"] = whole(parameter.grad).numpy().copy()
        found[f"weight {name}"] = whole(parameter.detach()).numpy().copy()
        found[f"moment {name}"] = whole(moments_of(optimizer, parameter)[1]).numpy().copy()
        held = {local(tensor).numel() for tensor in (parameter, parameter.grad, *moments_of(optimizer, parameter))}
        assert len(held) == 1  # of gradient and moments as much as of the weight
        found[f"held {name}"] = np.concatenate([*processes.gather(np.array([*held])), [parameter.numel()]])
    found |= embedded("after")
    with pytest.raises(UserError, match="picture 0 is broken"):  # on every process: 64 pictures in blocks of 24, the first on rank 0
        embed_images(tuned.siglip, tuned.inputs, FirstBroken(dataset), execution=Execution(processes=processes), block=24)
    return found


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def moments_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> list[torch.Tensor]:
    """Adam's two."""
    return [optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")]


@dataclass
class FirstBroken:
    """A split whose first picture does not decode."""

    dataset: RetrievalSet

    @property
    def num_images(self) -> int:
        """As many as the split has."""
        return self.dataset.num_images

    def load_image(self, image: int, /) -> Image.Image:
        """One picture."""
        if image == 0:
            raise ImageError("picture 0 is broken")
        return self.dataset.load_image(image)


def main() -> None:
    """Every case, in turn."""
    manifest, base, output = sys.argv[1:]
    dist.init_process_group("gloo")
    processes = Processes.current()
    for case in CASES:
        for arm in ("replicas", "parts"):
            found = take_steps(case, manifest, base, processes, sharded=arm == "parts")
            if processes.is_main:
                np.savez(Path(output) / f"{case.name}-{arm}.npz", **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

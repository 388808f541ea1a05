"""Two fp16 steps of which the first overflows on the last process alone, for test_loss_scale.py: python -m ... MANIFEST BASE OUTPUT."""

import contextlib
import hashlib
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from eval.processes import Processes
from tests.small_job import load
from train.config.job import JobConfig
from train.data.batches import BatchBuilder
from train.data.caption_pool import CaptionPool
from train.data.order import BatchOrder
from train.model.siglip import build_model, make_optimizer
from train.siglip.step import Stepper


def main() -> None:
    """Each process writes OUTPUT/RANK.txt: per step: skipped or not, scale and count after it, then its weights' hash."""
    manifest, base, output = sys.argv[1:4]
    dist.init_process_group("gloo")
    processes, dataset = Processes.current(), load(Path(manifest))
    train = {"max_steps": 9, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp16"}
    record = {"name": "job", "model": {"base": base}, "data": {"source": manifest}}
    job = JobConfig.model_validate(record | {"train": train | {"eval_every_steps": 1, "checkpoint_every_steps": 1}})
    tuned = build_model(job.model, base)
    stepper = Stepper(job, tuned, make_optimizer(tuned, job.train), dataset, processes, contextlib.nullcontext)
    batches = BatchBuilder(CaptionPool(dataset), tuned.inputs, BatchOrder(dataset.num_images, 8, 0), processes)
    said = []
    for step in (1, 2):
        hook = None
        if step == 1 and processes.rank == processes.world_size - 1:
            hook = tuned.siglip.logit_bias.register_hook(lambda gradient: gradient + math.inf)
        skipped = stepper.train_step(batches[step]).skipped
        if hook is not None:
            hook.remove()
        assert stepper.update.loss_scale is not None
        said.append(f"{skipped} {stepper.update.loss_scale.scale} {stepper.update.loss_scale.num_skipped}")
    weights = torch.cat([parameter.detach().ravel() for parameter in tuned.siglip.parameters()])
    said.append(hashlib.sha256(weights.numpy().tobytes()).hexdigest())
    (Path(output) / f"{processes.rank}.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

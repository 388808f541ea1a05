"""What the line of a step in metrics.jsonl says."""

from typing import Any

import torch

from train.batches import Order
from train.job import Job
from train.loss_scale import LossScale
from train.schedule import rate_factor
from train.step import StepResult


def step_record(
    job: Job, order: Order, step: int, result: StepResult, loss_scale: LossScale | None, seconds: float, waited: float
) -> dict[str, Any]:
    """The line of a step.

    Args:
        order: the order in force.
        loss_scale: fp16's for the next step.
        seconds, waited: of the whole step, and of it for the batch.
    """
    train = job.config.train
    factor = rate_factor(step, train.max_steps, train.num_warmup_steps)
    scale, bias = job.tuned.scale_and_bias()
    return {
        "epoch": order.epoch(step),
        "loss": result.loss,
        "loss_in_batch": result.loss_in_batch,
        "loss_mined": result.loss_mined,
        "num_mined": result.num_mined,
        **order.step_record(step),
        "grad_norm": result.grad_norm,
        "learning_rate": {group["part"]: group["peak"] * factor for group in job.optimizer.param_groups},
        "logit_scale": float(scale.detach()),
        "logit_bias": float(bias.detach()),
        "num_replaced": result.num_replaced,
        "seconds": seconds,
        "images_per_second": train.batch_size / seconds,
        "data_wait_share": waited / seconds,
        **gpu_record(job.accelerator.device),
        **scale_record(loss_scale, skipped=result.skipped),
    }


def gpu_record(device: torch.device) -> dict[str, float]:
    """Most memory torch held on this GPU so far; nothing on a CPU."""
    return {"peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}


def scale_record(scale: LossScale | None, *, skipped: bool) -> dict[str, Any]:
    """fp16's scale, whether this step was skipped, and how many were so far; nothing in the other precisions."""
    return {} if scale is None else {"loss_scale": scale.scale, "skipped": skipped, "num_skipped": scale.num_skipped}

"""Weights, gradients and optimizer state in parts, one on each process, for models beyond one GPU's memory (FSDP, torch's fully_shard).

Each layer of an encoder, and each tower with what else it holds, gathers its weights when it is run, forward or backward, and lets them go
after; its gradients are added up and shared out as the backward pass leaves it. Scale and bias, two numbers, are whole everywhere. The
sum of the processes' gradients is what the loss asks for, not their mean, which is what FSDP would give (Zhao et al. 2023,
arXiv 2304.11277). The optimizer must be built on the parts: after `shard`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import SiglipModel

from eval.errors import UserError

if TYPE_CHECKING:
    from eval.processes import Processes
    from train.config.job import JobConfig


def check_shardable(config: JobConfig, processes: Processes) -> None:
    """Refuse what was never made to work with sharded weights.

    Raises:
        UserError: train.shard with one process, or with a key that does not go with it; every such key is named.
    """
    if not config.train.shard:
        return
    if processes.world_size == 1:
        raise UserError("train.shard shares the weights out over processes, and this is one; start several, or take train.shard=false")
    asked: dict[str, Any] = {
        "model.lora": config.model.lora is not None,
        "model.freeze": bool(config.model.freeze),
        "train.micro_batch_size": config.train.micro_batch_size is not None,
        "train.precision=fp16": config.train.precision == "fp16",
    }
    if found := [key for key, is_asked in asked.items() if is_asked]:
        raise UserError(f"train.shard does not go with {', '.join(found)}; leave out one or the other")


def shard(siglip: SiglipModel, processes: Processes, device: torch.device) -> None:
    """Leave on this process, on its device, a part of every weight but scale and bias; call on every process.

    The weights are the same on all, and may lie elsewhere: they are brought to the device a layer at a time.
    """
    mesh = init_device_mesh(device.type, (processes.world_size,))
    for tower in (siglip.vision_model, siglip.text_model):
        for module in (*tower.encoder.layers, tower):
            sharded: Any = fully_shard(module, mesh=mesh, reshard_after_forward=True)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # else a factor, of whatever size, is beyond gloo


def placed(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor where another lies: on its device, and where that is a part, this process's part of it. Nothing travels."""
    here = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return here
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)

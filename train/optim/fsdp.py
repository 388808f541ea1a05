"""Weights, gradients and optimizer state sharded over processes, for models beyond one GPU's memory (FSDP, torch's fully_shard).

Each layer of an encoder, and each tower with its other weights, gathers its weights for the forward and the backward pass and frees them
afterwards; its gradients are reduced and scattered in the backward pass. Scale and bias are not sharded. The loss needs the sum of the
processes' gradients, while FSDP averages by default (Zhao et al. 2023, arXiv 2304.11277). The optimizer must be built after `shard`.

Frozen weights lie in parts too and have no gradient; adapters lie in parts with their layer. Half precision is autocast's, over float32
weights: with FSDP's own MixedPrecisionPolicy, which is fixed when a layer is sharded, evaluations of these weights would be in it too.
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
    """Refuse settings that do not work with sharded weights.

    Raises:
        UserError: train.shard with one process, or with a key that does not go with it; every such key is named.
    """
    if not config.train.shard:
        return
    if processes.world_size == 1:
        raise UserError("train.shard divides the weights among processes, and there is only one; start several, or set train.shard=false")
    asked: dict[str, Any] = {
        "train.micro_batch_size": config.train.micro_batch_size is not None,
        "train.compile": config.train.compile,
    }
    if found := [key for key, is_asked in asked.items() if is_asked]:
        raise UserError(f"train.shard does not go with {', '.join(found)}; leave out one or the other")


def shard(siglip: SiglipModel, processes: Processes, device: torch.device) -> None:
    """Shard every weight except scale and bias, and move this process's part to its device; call on every process.

    The weights are the same on all processes, and may be on another device: they are moved a layer at a time.
    """
    mesh = init_device_mesh(device.type, (processes.world_size,))
    for tower in (siglip.vision_model, siglip.text_model):
        for module in (*tower.encoder.layers, tower):
            sharded: Any = fully_shard(module, mesh=mesh, reshard_after_forward=True)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo supports no divide factor


def placed(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of `like`; where `like` is sharded, this process's part of it. No communication."""
    here = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return here
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)

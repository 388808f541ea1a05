"""The gradients of a step: summed over processes, measured, scaled; whole on every process, or of each weight a part.

Whole, they live in one flat buffer that is summed over processes once, after the backward pass. Not DDP: it rebuilds its buckets after the
first step, which changes the order of summation, so that a resumed run would differ in its last bits (docs/numerics.md).
"""

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from eval.processes import Processes


class FlatGradients:
    """All gradients as views of one buffer."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
        self._views = []
        start = 0
        for parameter in parameters:
            view = self.buffer[start : start + parameter.numel()].view_as(parameter)
            self._views.append((parameter, view))
            start += parameter.numel()

    def zero(self) -> None:
        """Clear the buffer and hang the views back on the parameters, in case something replaced them."""
        self.buffer.zero_()
        for parameter, view in self._views:
            parameter.grad = view

    def sum_over(self, processes: Processes) -> None:
        """Add up the gradients of all processes."""
        for parameter, view in self._views:
            if parameter.grad is not view:  # autograd was given no place to accumulate into: bring it home
                if parameter.grad is not None:
                    view.copy_(parameter.grad)
                parameter.grad = view
        if processes.world_size > 1:
            dist.all_reduce(self.buffer)

    def norm(self) -> float:
        """The global norm, added up in float64."""
        return float(torch.linalg.vector_norm(self.buffer, dtype=torch.float64))

    def scale_by(self, factor: float) -> None:
        """Multiply every gradient."""
        self.buffer.mul_(factor)


class ShardedGradients:
    """Of each sharded weight this process's part of the gradient, as the backward pass left it, summed already (train/optim/fsdp.py); of
    what is whole on every process, a flat buffer."""

    def __init__(self, parameters: list[torch.nn.Parameter], processes: Processes) -> None:
        self._sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
        self._whole = FlatGradients([parameter for parameter in parameters if not isinstance(parameter, DTensor)])
        self._processes = processes

    def zero(self) -> None:
        """Drop the parts and clear the buffer."""
        for parameter in self._sharded:
            parameter.grad = None
        self._whole.zero()

    def sum_over(self, processes: Processes) -> None:
        """Add up what is whole; the parts were added up in the backward pass."""
        self._whole.sum_over(processes)

    def norm(self) -> float:
        """The global norm, added up in float64, in rank order; the same on every process, and called on every one."""
        own = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in self._parts()]
        square = float(torch.stack(own).square().sum()) if own else 0.0
        squares = np.concatenate(self._processes.gather(np.array([square])))
        return float(np.sqrt(squares.sum() + self._whole.norm() ** 2))

    def scale_by(self, factor: float) -> None:
        """Multiply every gradient."""
        for part in self._parts():
            part.mul_(factor)
        self._whole.scale_by(factor)

    def _parts(self) -> list[torch.Tensor]:
        return [parameter.grad.to_local() for parameter in self._sharded if isinstance(parameter.grad, DTensor)]

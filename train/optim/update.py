"""The second half of an optimizer step, whatever is trained: sum gradients over processes, check, clip, update.

Gradients that are whole on every process lie in one flat buffer, which is summed over processes once, after the backward pass. Not DDP: it
rebuilds its buckets after the first step, which changes the order of summation, so that a resumed run would differ in its last bits.
"""

import math

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from eval.errors import CommandError
from eval.processes import Processes
from eval.sharded import whole
from train.config.run import LoopConfig
from train.optim.loss_scale import SMALLEST, LossScale
from train.optim.optimizer import Trainable


class NotFinite(CommandError):
    """Loss or gradient is not a finite number; nothing was updated. Exit code 5."""

    exit_code = 5
    is_shared = True


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
        """Clear the buffer, and set the parameters' gradients to its views again, in case something replaced them."""
        self.buffer.zero_()
        for parameter, view in self._views:
            parameter.grad = view

    def sum_over(self, processes: Processes) -> None:
        """Add up the gradients of all processes."""
        for parameter, view in self._views:
            if parameter.grad is not view:  # autograd made a new tensor: copy it into the buffer
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
    """This process's parts of the sharded gradients, which the backward pass has summed (train/optim/fsdp.py), and a flat buffer for the
    gradients of weights that are not sharded."""

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
        """Add up the gradients that are not sharded; the backward pass has added up the others."""
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


class Update:
    """Turns the gradients of all processes into an update, or refuses to.

    Attributes:
        loss_scale: what fp16 multiplies the loss by at the next step; None in the other precisions.
    """

    def __init__(
        self,
        config: LoopConfig,
        tuned: Trainable,
        optimizer: torch.optim.Optimizer,
        gradients: FlatGradients | ShardedGradients,
        processes: Processes,
    ) -> None:
        self._config, self._tuned, self._optimizer = config, tuned, optimizer
        self._gradients, self._processes = gradients, processes
        self.loss_scale = LossScale() if config.precision == "fp16" else None

    @property
    def factor(self) -> float:
        """What the loss is multiplied by before the backward pass."""
        return 1.0 if self.loss_scale is None else self.loss_scale.scale

    def gather_gradients(self) -> None:
        """Sum the gradients over processes, and divide by fp16's loss scale. An overflow on one process is not finite on any."""
        self._gradients.sum_over(self._processes)
        if self.loss_scale is not None:
            self._gradients.scale_by(1 / self.loss_scale.scale)

    def sum(self, values: list[float]) -> list[float]:
        """Sums over processes, in float64, in rank order."""
        parts = self._processes.gather(np.array([values], dtype=np.float64))
        return [float(value) for value in np.concatenate(parts).sum(axis=0)]

    def apply(self, step: int, loss: float) -> tuple[float, bool]:
        """Update the weights; (norm of the gradient before clipping, whether they were updated: fp16 skips a step that overflowed).

        Args:
            loss: over all processes.

        Raises:
            NotFinite: on every process, before anything is updated; in fp16 only when a smaller scale cannot help.
        """
        norm = self._gradients.norm()
        finite = bool(np.isfinite(loss) and np.isfinite(norm))
        if self.loss_scale is not None:
            self.loss_scale = self.loss_scale.after(overflowed=not finite)
        if not finite and (self.loss_scale is None or self.loss_scale.scale < SMALLEST):
            raise NotFinite(self._diagnosis(step, loss, norm))
        if finite:
            self._update_weights(step, norm)
        return norm, finite

    def _update_weights(self, step: int, norm: float) -> None:
        """Clip, and take the optimizer's step."""
        limit = self._config.max_grad_norm
        if limit is not None and norm > limit:
            self._gradients.scale_by(limit / norm)
        factor = rate_factor(step, self._config.max_steps, self._config.num_warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._optimizer.step()

    def _diagnosis(self, step: int, loss: float, norm: float) -> str:
        gradients = [(name, parameter.grad) for name, parameter in self._tuned.trainable() if parameter.grad is not None]
        bad = [name for name, gradient in gradients if not bool(whole(gradient).isfinite().all())]
        weights = [name for name, parameter in self._tuned.module.named_parameters() if not bool(whole(parameter).isfinite().all())]
        text = f"step {step}: loss {loss}, gradient norm {norm}; nothing was updated. Gradients not finite in {len(bad)} tensor(s)"
        text += f", e.g. {bad[:3]}" if bad else ""
        text += f"; weights not finite already: {weights[:3]}" if weights else ""
        return text + ". Try a lower train.learning_rate, train.precision=fp32, or look at the last lines of metrics.jsonl"


def rate_factor(step: int, max_steps: int, num_warmup_steps: int) -> float:
    """Share of the peak rate at a step (from 1): step / warm-up while warming up, then half a cosine that ends at 0 after the last step."""
    if step <= num_warmup_steps:
        return step / num_warmup_steps
    progress = (step - num_warmup_steps - 1) / max(1, max_steps - num_warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))

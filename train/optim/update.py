"""The second half of an optimizer step, whatever is trained: sum gradients over processes, check, clip, update.

Gradients that are whole on every process lie in one flat buffer, which is summed over processes once, after the backward pass. Not DDP: it
rebuilds its buckets after the first step, which changes the order of summation, so that a resumed run would differ in its last bits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from eval.errors import NotFinite
from eval.processes import Processes
from eval.sharded import whole
from train.config.run import LoopConfig
from train.optim.loss_scale import SMALLEST, LossScale
from train.optim.optimizer import Trainable

_LARGEST_NORM = float(np.sqrt(np.finfo(np.float32).max))
"""Of a gradient whose squares, which Adam keeps, are numbers in float32."""

_MOST_RATES = 3
"""Of towers, scale and bias: more are those of layers, and a message names the lowest and the highest."""


class Gradients:
    """The gradients of what trains: whole ones are views of one buffer, sharded ones lie in this process's parts, which the backward pass
    has summed (train/optim/fsdp.py)."""

    def __init__(self, parameters: list[torch.nn.Parameter], processes: Processes) -> None:
        self._processes = processes
        self._sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
        flat = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        sizes = [parameter.numel() for parameter in flat]
        self._buffer = torch.zeros(sum(sizes), dtype=flat[0].dtype, device=flat[0].device)
        views = self._buffer.split(sizes)
        self._views = [(parameter, view.view_as(parameter)) for parameter, view in zip(flat, views, strict=True)]

    def zero(self) -> None:
        """Clear the buffer, set the gradients to its views again, in case something replaced them, and drop the parts."""
        self._buffer.zero_()
        for parameter, view in self._views:
            parameter.grad = view
        for parameter in self._sharded:
            parameter.grad = None

    def sum_over_processes(self) -> None:
        """Add up the gradients that are not sharded."""
        for parameter, view in self._views:
            if parameter.grad is not view:  # autograd made a new tensor: copy it into the buffer
                if parameter.grad is not None:
                    view.copy_(parameter.grad)
                parameter.grad = view
        if self._processes.world_size > 1:
            dist.all_reduce(self._buffer)

    def norm(self) -> torch.Tensor:
        """The global norm, a float64 scalar on the device, added up in rank order; the same on every process, and called on every one."""
        norm = torch.linalg.vector_norm(self._buffer, dtype=torch.float64)
        if not self._sharded:
            return norm
        own = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in self._parts()]
        square = float(torch.stack(own).square().sum()) if own else 0.0
        squares = np.concatenate(self._processes.gather(np.array([square])))
        return norm.new_tensor(np.sqrt(squares.sum() + float(norm) ** 2))

    def scale_by(self, factor: float) -> None:
        """Multiply every gradient."""
        for part in (*self._parts(), self._buffer):
            part.mul_(factor)

    def _parts(self) -> list[torch.Tensor]:
        return [parameter.grad.to_local() for parameter in self._sharded if isinstance(parameter.grad, DTensor)]


class Update:
    """Turns the gradients of all processes into an update, or refuses to.

    Attributes:
        gradients: of what trains.
        loss_scale: what fp16 multiplies the loss by at the next step; None in the other precisions.
    """

    def __init__(self, config: LoopConfig, tuned: Trainable, optimizer: torch.optim.Optimizer, processes: Processes) -> None:
        self._config, self._tuned, self._optimizer, self._processes = config, tuned, optimizer, processes
        self.gradients = Gradients([parameter for _, parameter in tuned.trainable()], processes)
        self._device = next(tuned.module.parameters()).device
        self.loss_scale = LossScale() if config.precision == "fp16" else None

    @property
    def factor(self) -> float:
        """What the loss is multiplied by before the backward pass."""
        return 1.0 if self.loss_scale is None else self.loss_scale.scale

    def gather_gradients(self) -> None:
        """Sum the gradients over processes, and divide by fp16's loss scale. An overflow on one process is not finite on any."""
        self.gradients.sum_over_processes()
        if self.loss_scale is not None:
            self.gradients.scale_by(1 / self.loss_scale.scale)

    def rehearse(self, forward_backward: Callable[[], Any]) -> None:
        """Take the forward and backward pass of a step, beside the optimizer's state, and throw its gradients away: every bit stays."""
        device, module = self._device, self._tuned.module
        was_training = module.training
        trained = [parameter.detach() for _, parameter in self._tuned.trainable()]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.gradients.zero()
            room = [] if self._optimizer.state else [torch.empty_like(parameter) for parameter in (*trained, *trained)]
            forward_backward()
            del room
            self.gradients.zero()
        module.train(was_training)

    def sum(self, values: list[float]) -> list[float]:
        """Sums over processes, in float64, in rank order."""
        parts = self._processes.gather(np.array([values], dtype=np.float64))
        return [float(value) for value in np.concatenate(parts).sum(axis=0)]

    @staticmethod
    def read(values: Sequence[torch.Tensor]) -> list[float]:
        """Scalars on a device as numbers; the host waits for them once."""
        return torch.stack([value.detach().double() for value in values]).tolist() if values else []

    def apply(
        self, step: int, loss: float, norm: float | None = None, also: Callable[[], Sequence[torch.Tensor]] = tuple
    ) -> tuple[float, bool, list[float]]:
        """Update the weights; (norm of the gradient before clipping, whether they were updated: fp16 skips a step that overflowed, `also`).

        Args:
            loss: over all processes.
            norm: of the gradients, where it is known; None: it is waited for.
            also: scalars to read after the update, together with whether the weights are finite.

        Raises:
            NotFinite: on every process: loss or gradient, before anything is updated, in fp16 only when a smaller scale cannot help; or the
                weights after the update.
        """
        norm = self.read([self.gradients.norm()])[0] if norm is None else norm
        finite = bool(np.isfinite(loss) and np.isfinite(norm))
        if self.loss_scale is not None:
            self.loss_scale = self.loss_scale.after(overflowed=not finite)
        if not finite and (self.loss_scale is None or self.loss_scale.scale < SMALLEST):
            raise NotFinite(self._diagnosis(step, loss, norm))
        if finite:
            limit = self._config.max_grad_norm
            if min(norm, limit or math.inf) > _LARGEST_NORM:
                raise NotFinite(f"step {step}: gradient norm {norm}, whose square is beyond float32; nothing was updated")
            if limit is not None and norm > limit:
                self.gradients.scale_by(limit / norm)
            factor = rate_factor(step, self._config.max_steps, self._config.num_warmup_steps)
            for group in self._optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            return norm, finite, self._take(step, also)
        return norm, finite, self.read(also())

    def _take(self, step: int, also: Callable[[], Sequence[torch.Tensor]]) -> list[float]:
        """Update the weights, and look at them once; what `also` gives then."""
        rates = [*dict.fromkeys(f"{rate:g}" for rate in sorted(group["lr"] for group in self._optimizer.param_groups))]
        if len(rates) > _MOST_RATES:
            rates = [f"{rates[0]} to {rates[-1]}"]
        try:
            self._optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise NotFinite(f"step {step}: the rate {' and '.join(rates)} is beyond the weights' float32 ({error})") from error
        parameters = [parameter.detach() for _, parameter in self._tuned.trainable()]
        own = [part.to_local() if isinstance(part, DTensor) else part for part in parameters]
        size, *values = self.read([get_total_norm(own), *also()])
        finite = math.isfinite(size)  # of weights of 1e19 it is not: they are ruined as well
        if any(isinstance(part, DTensor) for part in parameters):  # replicas are equal, and know it without asking
            finite = all(bool(part[0]) for part in self._processes.gather(np.array([finite])))
        if not finite:
            bad = self._not_finite_weights()
            at = f"after the update, at the rate {' and '.join(rates)}"
            raise NotFinite(f"step {step}: weights not finite {at}, in {len(bad)} tensor(s), e.g. {bad[:3]}")
        return values

    def _not_finite_weights(self) -> list[str]:
        named = self._tuned.module.named_parameters()
        return [name for name, parameter in named if not bool(torch.linalg.vector_norm(whole(parameter.detach())).isfinite())]

    def _diagnosis(self, step: int, loss: float, norm: float) -> str:
        gradients = [(name, parameter.grad) for name, parameter in self._tuned.trainable() if parameter.grad is not None]
        bad = [name for name, gradient in gradients if not bool(whole(gradient).isfinite().all())]
        weights = self._not_finite_weights()
        text = f"step {step}: loss {loss}, gradient norm {norm}; nothing was updated. Gradients not finite in {len(bad)} tensor(s)"
        text += f", e.g. {bad[:3]}" if bad else ""
        text += f"; weights not finite already: {weights[:3]}" if weights else ""
        return text


def rate_factor(step: int, max_steps: int, num_warmup_steps: int) -> float:
    """Share of the peak rate at a step (from 1): step / warm-up while warming up, then half a cosine that ends at 0 after the last step."""
    if step <= num_warmup_steps:
        return step / num_warmup_steps
    progress = (step - num_warmup_steps - 1) / max(1, max_steps - num_warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))

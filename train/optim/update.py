"""The second half of an optimizer step, whatever is trained: sum over processes, check, clip, update."""

import math

import numpy as np
import torch

from eval.errors import CommandError
from eval.processes import Processes
from eval.sharded import whole
from train.config.run import LoopConfig
from train.optim.gradients import FlatGradients, ShardedGradients
from train.optim.loss_scale import LossScale
from train.optim.optimizer import Trainable


class NotFinite(CommandError):
    """Loss or gradient is not a finite number; nothing was updated. Exit code 5."""

    exit_code = 5
    is_shared = True


class Update:
    """Turns the gradients of all processes into an update, or refuses to.

    Attributes:
        loss_scale: what fp16 multiplies the loss by at the next step; None in the other precisions.
    """

    def __init__(
        self,
        config: LoopConfig,
        trainee: Trainable,
        optimizer: torch.optim.Optimizer,
        gradients: FlatGradients | ShardedGradients,
        processes: Processes,
    ) -> None:
        self._config, self._trainee, self._optimizer = config, trainee, optimizer
        self._gradients, self._processes = gradients, processes
        self.loss_scale = LossScale() if config.precision == "fp16" else None

    @property
    def factor(self) -> float:
        """What the loss is multiplied by before the backward pass."""
        return 1.0 if self.loss_scale is None else self.loss_scale.scale

    def gather_gradients(self) -> None:
        """Sum the gradients over processes, and take fp16's factor out. What overflowed on one process is not finite on any."""
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
        if not finite and (self.loss_scale is None or self.loss_scale.is_exhausted):
            raise NotFinite(self._diagnosis(step, loss, norm))
        if finite:
            self._take(step, norm)
        return norm, finite

    def _take(self, step: int, norm: float) -> None:
        """Clip, and let the optimizer take the step."""
        limit = self._config.max_grad_norm
        if limit is not None and norm > limit:
            self._gradients.scale_by(limit / norm)
        factor = rate_factor(step, self._config.max_steps, self._config.num_warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._optimizer.step()

    def _diagnosis(self, step: int, loss: float, norm: float) -> str:
        gradients = [(name, parameter.grad) for name, parameter in self._trainee.trainable() if parameter.grad is not None]
        bad = [name for name, gradient in gradients if not bool(whole(gradient).isfinite().all())]
        weights = [name for name, parameter in self._trainee.module.named_parameters() if not bool(whole(parameter).isfinite().all())]
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

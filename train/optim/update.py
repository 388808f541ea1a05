"""The second half of an optimizer step, whatever is trained: sum gradients over processes, check, clip, update.

Gradients that are whole on every process lie in one flat buffer. It is summed over processes in a few segments, each as soon as the
backward pass has written its last gradient, so that the sums travel while the rest is computed. The cut follows from the parameters' sizes
alone, and the segments leave in one order on every process. Not DDP: it rebuilds its buckets after the first step, which changes the order
of summation, so that a resumed run would differ in its last bits.

The host waits for the device twice: for losses and norm, which say whether there is an update and how it is clipped, and for the weights'
norm after it. While the second is on its way the host does what the loop asks of it (`Update.meanwhile`).
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from eval.errors import NotFinite
from eval.processes import Processes, brought
from eval.sharded import whole
from train.config.run import LoopConfig
from train.optim.loss_scale import SMALLEST, LossScale
from train.optim.optimizer import Trainable

_LARGEST_NORM = float(np.sqrt(np.finfo(np.float32).max))
"""Of a gradient whose squares, which Adam keeps, are numbers in float32."""

_MOST_RATES = 3
"""Of towers, scale and bias: more are those of layers, and a message names the lowest and the highest."""


_MOST_SEGMENTS = 8
_SEGMENT_BYTES = 1 << 25
"""Of a segment at least, but for the last: 32 MB, which keep a network of 100 Gbit/s busy for 5 ms, far longer than a message's start."""


_PIECE = 1 << 21
"""Elements whose norm is taken at once: 16 MB in float64."""


@dataclass(eq=False)
class _Segment:
    """A piece of the buffer that is summed at once.

    Attributes:
        num_parameters: whose gradients it holds.
        num_missing: of these, gradients that the backward pass has not written yet.
        work: the sum, once it has begun.
    """

    buffer: torch.Tensor
    num_parameters: int
    num_missing: int = 0
    work: Any = None


class Gradients:
    """The gradients of what trains: whole ones are views of one buffer, sharded ones lie in this process's parts, which the backward pass
    has summed (train/optim/fsdp.py).

    With several processes: `zero`, backward passes, `sum_over_processes`. The first step's gradients are summed after the backward pass and
    show in which order segments become whole; the main process's order is that of every later step on every process. It moves no bit: the
    cut decides what is added to what.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], processes: Processes) -> None:
        self._processes = processes
        self._sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
        flat = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        sizes = [parameter.numel() for parameter in flat]
        self._buffer = torch.zeros(sum(sizes), dtype=flat[0].dtype, device=flat[0].device)
        views = self._buffer.split(sizes)
        self._views = [(parameter, view.view_as(parameter)) for parameter, view in zip(flat, views, strict=True)]
        self._segments, self._is_last = list[_Segment](), True
        self._whole = list[int]()  # segments of this step in the order in which they became whole
        self._order: list[int] | None = None  # in which they are summed; None: not known yet
        self._num_begun = 0
        if processes.world_size > 1:
            self._cut(sizes)

    def _cut(self, sizes: list[int]) -> None:
        """Cut the buffer at parameters, from the first on, and note when the backward pass has written each."""
        size = self._buffer.element_size()
        least = max(_SEGMENT_BYTES // size, -(-len(self._buffer) // _MOST_SEGMENTS))
        start = stop = 0
        members = list[tuple[torch.nn.Parameter, torch.Tensor]]()
        for number, (member, length) in enumerate(zip(self._views, sizes, strict=True), 1):
            members.append(member)
            stop += length
            if stop - start >= least or number == len(sizes):
                segment = _Segment(self._buffer[start:stop], len(members))
                for parameter, view in members if not self._sharded else []:
                    parameter.register_post_accumulate_grad_hook(partial(self._written, segment, view))
                self._segments.append(segment)
                start, members = stop, []

    def zero(self) -> None:
        """Clear the buffer, set the gradients to its views again, in case something replaced them, and drop the parts."""
        self._buffer.zero_()
        for parameter, view in self._views:
            parameter.grad = view
        for parameter in self._sharded:
            parameter.grad = None
        for segment in self._segments:
            segment.num_missing, segment.work = segment.num_parameters, None
        self._whole, self._num_begun, self._is_last = [], 0, True

    def expect(self, is_last: bool) -> None:
        """Say whether the next backward pass is the last that adds to the gradients it reaches; after `zero` it is."""
        self._is_last = is_last

    def _written(self, segment: _Segment, view: torch.Tensor, parameter: torch.Tensor) -> None:
        """The backward pass has added to a parameter's gradient."""
        if not self._is_last:
            return
        _put(parameter, view)
        segment.num_missing -= 1
        if segment.num_missing == 0:
            self._whole.append(self._segments.index(segment))
            if self._order is not None:
                self._begin_sums(set(self._whole))

    def _begin_sums(self, ready: Collection[int]) -> None:
        """Begin the sums whose turn it is, up to the first segment that is not ready."""
        assert self._order is not None
        while self._num_begun < len(self._order) and self._order[self._num_begun] in ready:
            segment = self._segments[self._order[self._num_begun]]
            segment.work = dist.all_reduce(segment.buffer, async_op=True)
            self._num_begun += 1

    def sum_over_processes(self) -> None:
        """Add up the gradients that are not sharded; what the backward pass did not reach is 0."""
        for parameter, view in self._views:
            _put(parameter, view)
        if self._processes.world_size == 1:
            return
        every = range(len(self._segments))
        if self._order is None:
            own = [*self._whole, *(number for number in every if number not in self._whole)]
            self._order = self._processes.from_main(lambda: own)
        self._begin_sums(every)
        for number in self._order:
            self._segments[number].work.wait()

    def norm(self) -> torch.Tensor:
        """The global norm, a float64 scalar on the device; the same on every process, and called on every one."""
        norm = _norm(self._buffer)
        if not self._sharded:
            return norm
        own = [_norm(part) for part in self._parts()]
        square = torch.stack(own).square().sum() if own else norm.new_zeros(())
        squares_W = self._processes.on_device_later(square[None])()
        return (squares_W.sum() + norm.square()).sqrt()

    def scale_by(self, factor: float) -> None:
        """Multiply every gradient."""
        for part in (*self._parts(), self._buffer):
            part.mul_(factor)

    def _parts(self) -> list[torch.Tensor]:
        return [parameter.grad.to_local() for parameter in self._sharded if isinstance(parameter.grad, DTensor)]


def _norm(values: torch.Tensor) -> torch.Tensor:
    """The norm, a float64 scalar, in pieces: torch writes all in float64 before it adds up, for a whole model in twice AdamW's time."""
    pieces = values.reshape(-1).split(_PIECE)
    norms = [torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _put(parameter: torch.Tensor, view: torch.Tensor) -> None:
    """Have a parameter's gradient lie in its view of the buffer; autograd may have made a new tensor."""
    if parameter.grad is not view:
        if parameter.grad is not None:
            view.copy_(parameter.grad)
        parameter.grad = view


class Update:
    """Turns the gradients of all processes into an update, or refuses to.

    Attributes:
        gradients: of what trains.
        loss_scale: what fp16 multiplies the loss by at the next step; None in the other precisions.
        meanwhile: what the host does while the device updates the weights.
    """

    def __init__(self, config: LoopConfig, tuned: Trainable, optimizer: torch.optim.Optimizer, processes: Processes) -> None:
        self._config, self._tuned, self._optimizer, self._processes = config, tuned, optimizer, processes
        self.gradients = Gradients([parameter for _, parameter in tuned.trainable()], processes)
        self._device = next(tuned.module.parameters()).device
        self.loss_scale = LossScale() if config.precision == "fp16" else None
        self.meanwhile: Callable[[], Any] = lambda: None

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
        parts = self._processes.gather_later(np.array(values, dtype=np.float64), len(values))()
        return [float(value) for value in np.stack(parts).sum(axis=0)]

    def of_all(self, values: Sequence[torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Scalars of a device, from every process: float64 (world_size, number of values), begun here."""
        return self._processes.on_device_later(torch.stack([value.detach().double() for value in values]))

    def read_sums(self, values: Callable[[], torch.Tensor]) -> tuple[list[float], float]:
        """(sums over processes of what `of_all` gives, in rank order; the gradient's norm): the host waits for the device once."""
        values_Wk = values()
        *own, norm = torch.cat([values_Wk.flatten(), self.gradients.norm()[None]]).tolist()
        return np.array(own).reshape(values_Wk.shape).sum(axis=0).tolist(), norm

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
        sizes = get_total_norm(own).double()[None]  # of weights of 1e19 it is not finite: they are ruined as well
        if any(isinstance(part, DTensor) for part in parameters):  # replicas are equal, and know it without asking
            sizes = self._processes.on_device_later(sizes)().flatten()
        read = brought(torch.cat([sizes, *(value.detach().double()[None] for value in also())]))
        self.meanwhile()
        values = read().tolist()
        if not all(map(math.isfinite, values[: len(sizes)])):
            bad = self._not_finite_weights()
            at = f"after the update, at the rate {' and '.join(rates)}"
            raise NotFinite(f"step {step}: weights not finite {at}, in {len(bad)} tensor(s), e.g. {bad[:3]}")
        return values[len(sizes) :]

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

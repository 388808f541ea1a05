"""The exponential moving average (EMA) of the weights that train, which evaluations and exports take in their place.

Source: Polyak and Juditsky 1992 (averaging of iterates); factor and its warm-up as in tf.train.ExponentialMovingAverage with num_updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor

from train.optim.optimizer import Trainable


def decay_at(num_updates: int, decay: float) -> float:
    """The factor of the old average at an update: min(decay, (1 + t) / (10 + t)), so that the first weights do not stay in it for long.

    Args:
        num_updates: t, updates of the weights up to this one, from 1.
        decay: the factor in the long run, in (0, 1).
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WeightAverage:
    """The average of what trains: a copy of it, of its own type (float32 in a run), each process with its part where it lies in parts.

    average = d * average + (1 - d) * weight after each update, with d of `decay_at`. It begins as the weights are.
    Element by element: replicas stay equal, and a checkpoint continues it bit for bit.

    Attributes:
        num_updates: t of the last update.
    """

    def __init__(self, tuned: Trainable, decay: float) -> None:
        self._tuned, self._decay, self.num_updates = tuned, decay, 0
        self._copies = {name: parameter.detach().clone() for name, parameter in tuned.trainable()}
        self._is_in_model = False

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, average) of everything that trains; not while the model holds them."""
        assert not self._is_in_model
        return iter(self._copies.items())

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again at the weights as they are now."""
        assert not self._is_in_model
        for name, parameter in self._tuned.trainable():
            self._copies[name].copy_(parameter)
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights into the average: after each update of theirs."""
        assert not self._is_in_model
        self.num_updates += 1
        weights = [_local(parameter.detach()) for _, parameter in self._tuned.trainable()]
        torch._foreach_lerp_([_local(copy) for copy in self._copies.values()], weights, 1 - decay_at(self.num_updates, self._decay))

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The model with the averages; the copies hold the weights until then. No more memory than the largest tensor's."""
        self._exchange()
        try:
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Give the model its weights again, where it holds the averages: a run that is told to stop in an evaluation saves them."""
        if self._is_in_model:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._tuned.trainable():  # in place: FSDP gathers from the memory that the parameter has
            weight, copy = _local(parameter.detach()), _local(self._copies[name])
            before = weight.clone()
            weight.copy_(copy)
            copy.copy_(before)
        self._is_in_model = not self._is_in_model


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

"""train/optim/update.py: when gradients are summed over processes; the learning rate: linear warm-up, then half a cosine."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from train.optim import update
from train.optim.update import Gradients, rate_factor


@dataclass
class Two:
    """Two processes, of which the other has the same gradients."""

    begun: list[int]
    world_size: int = 2

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What the main process, this one, has."""
        return make()

    def all_reduce(self, buffer: torch.Tensor, async_op: bool) -> "Two":
        """Begin a sum; parameters have as many entries as their number."""
        assert async_op
        self.begun.append(len(buffer))
        buffer.mul_(2)
        return self

    def wait(self) -> None:
        """Nothing is left to do."""


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Two:
    """Every parameter of one number or more is a segment."""
    made = Two([])
    monkeypatch.setattr(update, "_SEGMENT_BYTES", 4)
    monkeypatch.setattr(update, "_MOST_SEGMENTS", 100)
    monkeypatch.setattr(update.dist, "all_reduce", made.all_reduce)
    return made


def parameters(*sizes: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(size)) for size in sizes]


def test_sums_begin_in_the_order_of_the_first_step_while_the_backward_pass_runs(two: Two) -> None:
    one, other, third = parameters(1, 2, 3)
    gradients = Gradients([one, other, third], two)  # type: ignore[arg-type]
    begun_at_the_lowest = list[list[int]]()

    def step(factor: float) -> None:
        two.begun.clear()
        gradients.zero()
        lowest = one * factor
        lowest.register_hook(lambda _: begun_at_the_lowest.append([*two.begun]))
        ((lowest * 3 + other.sum()) * 1.0 + third.sum()).sum().backward()
        gradients.sum_over_processes()

    step(1.0)
    first = [*two.begun]
    assert begun_at_the_lowest == [[]] and sorted(first) == [1, 2, 3] and first[-1] == 1
    step(5.0)
    assert two.begun == first and begun_at_the_lowest[1] == first[:2]
    assert [parameter.grad.tolist() for parameter in (one, other, third) if parameter.grad is not None] == [[30.0], [2.0] * 2, [2.0] * 3]


def test_a_segment_waits_for_its_turn_and_one_without_a_gradient_is_summed_at_the_end(two: Two) -> None:
    one, other, third = parameters(1, 2, 3)
    gradients = Gradients([one, other, third], two)  # type: ignore[arg-type]
    for used, expected in (([one, other], [1, 2, 3]), ([other], []), ([one], [1]), ([third, other], [])):
        two.begun.clear()
        gradients.zero()
        for parameter in used:
            parameter.sum().backward()
        assert two.begun == (expected if gradients._order is not None else [])
        gradients.sum_over_processes()
        assert two.begun == [1, 2, 3]
        values = [parameter.grad[0].item() for parameter in (one, other, third) if parameter.grad is not None]
        assert values == [2.0 * any(parameter is one_used for one_used in used) for parameter in (one, other, third)]


def test_of_micro_batches_the_last_alone_begins_a_sum(two: Two) -> None:
    (one,) = parameters(1)
    gradients = Gradients([one], two)  # type: ignore[arg-type]
    for _ in range(2):
        two.begun.clear()
        gradients.zero()
        for part in range(3):
            assert two.begun == []
            gradients.expect(part == 2)
            one.sum().backward()
        gradients.sum_over_processes()
        assert two.begun == [1] and one.grad is not None and one.grad.tolist() == [6.0]


def test_segments_are_cut_at_parameters_and_few(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "_SEGMENT_BYTES", 12)
    cut = Gradients(parameters(1, 1, 5, 2, 1, 1), two)._segments  # type: ignore[arg-type]
    assert [len(segment.buffer) for segment in cut] == [7, 3, 1]
    monkeypatch.setattr(update, "_MOST_SEGMENTS", 2)
    cut = Gradients(parameters(*[1] * 11), two)._segments  # type: ignore[arg-type]
    assert [len(segment.buffer) for segment in cut] == [6, 5]


def test_warm_up_rises_by_equal_steps_to_the_peak() -> None:
    assert [rate_factor(step, 100, 4) for step in (1, 2, 3, 4, 5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_cosine_would_be_zero_one_step_after_the_last() -> None:
    assert rate_factor(101, 100, 10) == pytest.approx(0.0, abs=1e-15)
    assert 0 < rate_factor(100, 100, 10) < 1e-3
    assert rate_factor(56, 100, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))


def test_it_never_rises_after_the_warm_up() -> None:
    factors = [rate_factor(step, 37, 5) for step in range(5, 38)]
    assert factors == sorted(factors, reverse=True) and all(0 < factor <= 1 for factor in factors)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rate_factor(1, 1, 0) == 1.0 and rate_factor(1, 10, 0) == 1.0

"""train/reranker/collapse.py: the entropy of the ratio, and a run that sits at it is named once, again only after it has left."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from train.reranker import collapse
from train.reranker.collapse import RunningLoss, constant_loss, loss_warning


def test_at_one_to_two_it_is_the_figure_users_report() -> None:
    assert constant_loss(1, 2) == pytest.approx(0.6365, abs=5e-5)
    assert constant_loss(1, 1) == pytest.approx(math.log(2))
    assert f"{constant_loss(8, 0):.4f}" == "0.0000", "and not -0.0000"


@given(st.integers(1, 50), st.integers(1, 50))
def test_it_is_the_least_cross_entropy_of_equal_logits(num_true: int, num_false: int) -> None:
    labels = torch.tensor([1] * num_true + [0] * num_false)
    found = [
        float(cross_entropy(torch.tensor([[0.0, margin]], dtype=torch.float64).expand(len(labels), 2), labels))
        for margin in (math.log(num_true / num_false) + shift for shift in (-0.1, 0.0, 0.1))
    ]
    assert found[1] == pytest.approx(constant_loss(num_true, num_false))
    assert found[1] < min(found[0], found[2])


def follow(losses: list[float]) -> list[RunningLoss]:
    """The running loss after each step, at 1 to 2."""
    states = [RunningLoss()]
    for loss in losses:
        states.append(states[-1].after(loss, constant_loss(1, 2)))
    return states[1:]


def test_it_is_named_after_so_many_steps_and_left_when_the_loss_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "WITHIN", 0.05)
    monkeypatch.setattr(collapse, "OVER_STEPS", 5)
    states = follow([0.64] * 8 + [0.2] * 4 + [0.64] * 40)
    named = [state.named for state in states]
    assert named[:4] == [False] * 4 and named[4:8] == [True] * 4
    assert not any(named[8:12]) and named[-1]
    assert sum(1 for before, after in zip(named, named[1:], strict=False) if after and not before) == 2
    assert "0.6365 at 1 : 2 true to false" in loss_warning(states[7], 1, 2)


def test_a_loss_above_the_constant_answer_is_not_one() -> None:
    assert not any(state.named for state in follow([0.75] * 60))
    assert follow([0.64] * 60)[-1].named


@given(st.lists(st.floats(0.01, 3), min_size=1, max_size=30))
def test_the_running_mean_is_the_weighted_mean_written_out(losses: list[float]) -> None:
    weights = [0.98 ** (len(losses) - 1 - place) for place in range(len(losses))]
    expected = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert follow(losses)[-1].means[0] == pytest.approx(expected)


def test_it_comes_back_from_json_as_it_was() -> None:
    state = follow([0.3, 0.7, 0.64])[-1]
    assert RunningLoss(**json.loads(json.dumps(asdict(state)))) == state

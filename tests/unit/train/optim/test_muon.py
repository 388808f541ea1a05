"""train/optim/muon.py against singular value decomposition, a float64 loop, and torch's own Muon."""

import numpy as np
import pytest
import torch

from train.optim.muon import MOMENTUM, Muon, orthogonal

SHAPES = [(6, 6), (12, 5), (5, 12)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], shape[0], dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(shape[1], shape[1], dtype=torch.float64))
    values = torch.logspace(0, -1.5, min(shape), dtype=torch.float64)
    matrix = left[:, : len(values)] * values @ right[:, : len(values)].T
    found = left[:, : len(values)].T @ orthogonal(matrix) @ right[:, : len(values)]
    assert torch.allclose(found, found.diag().diag(), atol=1e-6)
    assert found.diag().min() > 0.65 and found.diag().max() < 1.25
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_equal_a_loop_in_float64(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, other = (torch.nn.Parameter(torch.randn(size)) for size in (shape, (7,)))
    optimizer = Muon(groups_of(weight, other), lr=0.01, betas=(0.9, 0.95), eps=1e-6)
    alone = torch.nn.Parameter(other.detach().clone())
    adamw = torch.optim.AdamW([{"params": [alone], "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.95), eps=1e-6)
    expected, momentum = weight.detach().double().numpy().copy(), np.zeros(shape)
    for _ in range(4):
        weight.grad, other.grad = torch.randn(shape), torch.randn(7)
        alone.grad = other.grad.clone()
        gradient = weight.grad.double().numpy()
        optimizer.step()
        adamw.step()
        momentum = MOMENTUM * momentum + gradient
        update = gradient + MOMENTUM * momentum
        x = update if shape[0] <= shape[1] else update.T
        x = x / np.linalg.norm(x)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
        x = x if shape[0] <= shape[1] else x.T
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * max(shape) ** 0.5 * x
        np.testing.assert_allclose(weight.detach().numpy(), expected, atol=1e-5)
        assert torch.equal(other, alone)


def test_it_agrees_with_torchs_own_to_the_precision_of_bfloat16() -> None:
    torch.manual_seed(0)
    weight, other = torch.nn.Parameter(torch.randn(16, 24)), torch.nn.Parameter(torch.randn(3))
    theirs = torch.nn.Parameter(weight.detach().clone())
    optimizer = Muon(groups_of(weight, other), lr=0.02)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    start = weight.detach().clone()
    for _ in range(3):
        weight.grad, other.grad = torch.randn(16, 24), torch.randn(3)
        theirs.grad = weight.grad.clone()  # torch's momentum is a mean, ours a sum: the direction is the same
        optimizer.step()
        reference.step()
    assert (weight - theirs).norm() < 0.1 * (weight - start).norm()


def groups_of(weight: torch.nn.Parameter, other: torch.nn.Parameter) -> list[dict[str, object]]:
    """A group of each kind."""
    return [
        {"params": [weight], "muon": True, "weight_decay": 0.1},
        {"params": [other], "muon": False, "weight_decay": 0.0},
    ]

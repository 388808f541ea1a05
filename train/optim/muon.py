"""Muon: the momentum of a matrix is made orthogonal before it is added, so that every direction of it moves by the same amount.

Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the rate that gives an update the size of AdamW's: Liu et al. 2025, arXiv
2502.16982. torch.optim.Muon does the same, for matrices alone; here one optimizer holds both kinds, as a checkpoint has one state.

Shape letters: M x N, the matrix of a layer; R = min(M, N).
"""

from collections.abc import Callable
from typing import Any

import torch

MOMENTUM = 0.95
_ITERATIONS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of x -> a x + b x^3 + c x^5, which takes singular values in (0, 1] to about 1 (0.7 to 1.2) in five rounds."""


def orthogonal(matrix_MN: torch.Tensor) -> torch.Tensor:
    """U V^T of the matrix U S V^T, about: its singular values become 0.7 to 1.2, in bfloat16 on a GPU, else in its own type."""
    tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x = matrix_MN.T if tall else matrix_MN
    x = x.bfloat16() if x.is_cuda else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square_RR = x @ x.T
        x = a * x + (b * square_RR + c * square_RR @ square_RR) @ x
    return (x.T if tall else x).to(matrix_MN.dtype)


class Muon(torch.optim.AdamW):
    """Muon in the groups that have "muon": True; AdamW in the others."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all weights. A closure is not taken: gradients are there."""
        assert closure is None
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for weight in group["params"] if group["muon"] else []:
                self._step_matrix(weight, group["lr"], group["weight_decay"])

    def _step_matrix(self, weight_MN: torch.Tensor, rate: float, decay: float) -> None:
        """Nesterov's momentum, made orthogonal, times 0.2 sqrt(max(M, N)): its root mean square is then about AdamW's, 0.2."""
        if weight_MN.grad is None:
            return
        state = self.state[weight_MN]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight_MN)
        momentum_MN = state["momentum"]
        momentum_MN.mul_(MOMENTUM).add_(weight_MN.grad)
        update_MN = orthogonal(weight_MN.grad + MOMENTUM * momentum_MN)
        weight_MN.mul_(1 - rate * decay).add_(update_MN, alpha=-rate * 0.2 * max(weight_MN.shape) ** 0.5)

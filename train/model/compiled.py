"""Both towers compiled (torch.compile) for training: `train.compile`.

A compiled graph is one of its shapes, so every forward pass has a number of rows that is known before the first step: the images of a
process's share, its captions, its captions with as many mined ones as there can be, or a micro-batch. Fewer rows are filled up, and what
the towers make of the filling is thrown away before the loss, so its gradient is zero. All graphs are compiled before step 1, none later.
The model itself stays as it is: evaluation and mining run it uncompiled, with their own blocks and bits, and the names of weights stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from eval.errors import UserError
from train.data.batches import concatenated
from train.model.frozen_tower import cached_towers

if TYPE_CHECKING:
    from train.config.job import JobConfig
    from train.config.model import Tower
    from train.model.siglip import TunedModel


@dataclass(frozen=True)
class Pass:
    """A kind of forward pass of a tower in training.

    Attributes:
        has_graph: autograd records it; False: the first pass of cached micro-batches.
    """

    tower: Tower
    num_rows: int
    has_graph: bool


def passes_of(config: JobConfig, world_size: int) -> list[Pass]:
    """Every kind of forward pass that the steps of a job can have on a process, each once."""
    share, per_image = config.train.batch_size // world_size, config.train.captions_per_image
    counts: dict[Tower, list[int]] = {
        "image": [share],
        "text": sorted({share * per_image, share * (per_image + config.most_mined)}),
    }
    found = []
    for tower in counts.keys() - set(cached_towers(config)):
        sizes, micro_batch_size = counts[tower], config.train.micro_batch_size
        if micro_batch_size is None or sizes[-1] <= micro_batch_size:
            found += [Pass(tower, size, has_graph=True) for size in sizes]
            continue
        found.append(Pass(tower, micro_batch_size, has_graph=False))
        if tower not in config.model.freeze or sizes[0] <= micro_batch_size:
            found.append(Pass(tower, micro_batch_size, has_graph=True))
    return sorted(found, key=lambda one: (one.tower, one.num_rows, one.has_graph))


class CompiledTowers:
    """Stands in for a SiglipModel in `image_features` and `text_features`.

    Attributes:
        vision_model, text_model: those of the model, compiled; the same weights.
        passes: the kinds of forward pass that are compiled.
    """

    def __init__(self, tuned: TunedModel, passes: list[Pass], backend: str = "inductor") -> None:
        """backend: torch.compile's; inductor makes code for the device, aot_eager none."""
        # Of a function's graphs torch keeps 8 by default and runs it uncompiled after that.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        options: dict[str, Any] | None = None
        if backend == "inductor":  # dropout as torch itself draws it: both passes of a cached micro-batch then have the same
            options = {"fallback_random": True, "deterministic": torch.are_deterministic_algorithms_enabled()}
        self.passes, self._inputs = passes, tuned.inputs
        parts: dict[Tower, Any] = {"image": tuned.siglip.vision_model, "text": tuned.siglip.text_model}
        self.vision_model, self.text_model = (
            torch.compile(part, dynamic=False, backend=backend, options=options) for part in parts.values()
        )
        self._weights = {tower: [weight for weight in part.parameters() if weight.requires_grad] for tower, part in parts.items()}
        self._is_warm = False

    def filled(self, tower: Tower, rows: torch.Tensor) -> torch.Tensor:
        """Rows, filled up with the first of them to the smallest number that is compiled."""
        sizes = [one.num_rows for one in self.passes if one.tower == tower and one.num_rows >= len(rows)]
        missing = min(sizes, default=len(rows)) - len(rows)
        return concatenated([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows

    def warm_up(self, forward: Callable[[Tower, torch.Tensor], torch.Tensor]) -> None:
        """Compile every graph, forward and backward, at the first call; gradients are left as they are.

        Not under a TorchDispatchMode, such as a counter of operations: there torch runs compiled functions uncompiled.

        Args:
            forward: a forward pass as the steps take it.
        """
        if self._is_warm or torch._C._len_torch_dispatch_stack():
            return
        for one in self.passes:
            rows = torch.zeros(one.num_rows, self._inputs.num_tokens, dtype=torch.int64)
            if one.tower == "image":
                rows = torch.zeros(one.num_rows, 3, self._inputs.image_size, self._inputs.image_size)
            with torch.set_grad_enabled(one.has_graph):
                vectors_ND = forward(one.tower, rows)
            if one.has_graph and (weights := self._weights[one.tower]):
                torch.autograd.grad(vectors_ND.sum(), weights, allow_unused=True)
        self._is_warm = True


def require_compiler(device: torch.device) -> None:
    """Compile a small function for a device.

    Raises:
        UserError: it fails, as where there is no C++ compiler.
    """
    try:
        torch.compile(_trial, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # each part of the compiler has its own kinds
        needed = "a C++ compiler, such as g++, with Python's headers" + (", and triton" if device.type == "cuda" else "")
        raise UserError(
            f"train.compile: torch.compile does not work here ({str(error).strip().splitlines()[0]}). It needs {needed} "
            "(docs/optimizer.md); install what is missing, or set train.compile=false"
        ) from error


def _trial(values: torch.Tensor) -> torch.Tensor:
    return values.sin() + 1

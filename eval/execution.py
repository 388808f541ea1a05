"""How a split is worked through: what embedding, search, mining and evaluation are all told, as one value."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from eval.errors import UserError
from eval.processes import Processes

if TYPE_CHECKING:
    from eval.dataset.pixel_cache import PixelStore

Precision = Literal["fp32", "bf16", "fp16"]
"""What matrix products are computed in; weights, norms and unit vectors are float32 in each."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def no_progress(count: int) -> None:
    """Hear of progress and do nothing."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Who does the work, where, and who hears of it. The defaults are one process on the CPU, pictures decoded in it, and silence.

    Attributes:
        processes: those that share the work; all of them make the same calls.
        device: where models and searches run.
        num_workers: processes that decode pictures for this one; 0: it decodes them itself.
        on_progress: called on this process with each number of rows embedded, or of pairs scored; what it raises ends the work.
        precision: what SigLIP's towers embed in, by autocast.
        pixels: caches of resized pictures; None: every picture is decoded.
    """

    processes: Processes = Processes()
    device: torch.device = torch.device("cpu")
    num_workers: int = 0
    on_progress: Callable[[int], Any] = no_progress
    precision: Precision = "fp32"
    pixels: "PixelStore | None" = None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """In which towers that lie on a device embed in this precision."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(device.type, dtype=_DTYPES[self.precision])

    @contextmanager
    def rounds(self, num_items: int) -> Iterator[Callable[[int], Any]]:
        """`on_progress` for this process's share of items of which each process takes every world_size-th.

        It is called equally often on every process, with 0 at the end and in place of what a process lacks or, for a fault, leaves out: so
        it may ask all of them whether to stop, and what was asked in here is answered in here.

        Raises:
            UserError, OSError: the fault, once it was.
        """
        left, fault = -(-num_items // self.processes.world_size) + (self.processes.world_size > 1), None
        calls_back = False

        def advance(rows: int) -> None:
            nonlocal left, calls_back
            left, calls_back = left - 1, True
            self.on_progress(rows)
            calls_back = False

        try:
            yield advance
        except (UserError, OSError) as error:
            if calls_back:  # on_progress itself raised it
                raise
            fault = error
        while left > 0:
            advance(0)
        if fault is not None:
            raise fault


ONE_PROCESS = Execution()
"""The default: this process alone, on the CPU."""

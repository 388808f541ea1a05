"""How a split is worked through: what embedding, search, mining and evaluation are all told, as one value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from eval.processes import Processes


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
    """

    processes: Processes = Processes()
    device: torch.device = torch.device("cpu")
    num_workers: int = 0
    on_progress: Callable[[int], Any] = no_progress


ONE_PROCESS = Execution()
"""The default: this process alone, on the CPU."""

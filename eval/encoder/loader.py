"""New."""

import atexit
import multiprocessing
import signal
from typing import Any

from torch.utils.data import DataLoader, Dataset


def pictures_loader(pictures: Dataset, *, num_workers: int, **options: Any) -> Any:  # type: ignore[type-arg]
    """A DataLoader over ready-made blocks, with workers that leave stopping to their parent.

    Ctrl-C and a cluster's SIGTERM reach every process of a group; a worker that died of one would cost its parent the last
    checkpoint. Workers end when the loader does, or when their parent is gone.
    """
    context = "fork" if num_workers else None
    return DataLoader(
        pictures,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=_leave_signals_to_parent,
        **options,
    )


@atexit.register
def _end_workers() -> None:
    """Where an error ends the program its loaders are never closed, and Python would wait for ever for workers that ignore its SIGTERM."""
    for worker in multiprocessing.active_children():
        worker.kill()


def _leave_signals_to_parent(_: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

"""The processes that decode pictures: a DataLoader over ready-made items, what it may send through shared memory, and how it ends."""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from eval.dataset.picture_warnings import Noted, say, taken
from eval.manifest.names import called
from eval.signals import deferred, leave_signals_to_parent

SHARED_MEMORY = "/dev/shm"
_told: list[bool] = []  # that it has not enough room: a line is enough
_AHEAD = 2  # items that each worker makes ahead


def block_loader(
    items: "Dataset[Any]", *, num_workers: int, item_bytes: int = 0, at_once: int = 1, sampler: Iterable[Any] | None = None
) -> Iterator[Any]:
    """The items in order, made by workers that leave stopping to their parent.

    Ctrl-C and a cluster's signals reach every process of a group; a worker that died of one would cost its parent the last
    checkpoint. Workers end when the iterator does, or when their parent is gone.

    Args:
        item_bytes: what an item's tensors take at most. They go through shared memory; where that has no room for all that are under way,
            through pipes, and a line on stderr says so.
        at_once: items that are taken at once: so many, twice, are made ahead.
    """
    if not num_workers:
        yield from DataLoader(items, batch_size=None, sampler=sampler)
        return
    ahead = _num_ahead(num_workers, at_once)
    loader: Any = DataLoader(
        _Sent(items, is_shared=_has_room(shared_bytes(num_workers, item_bytes, at_once), num_workers)),
        batch_size=None,
        collate_fn=lambda item: item,  # torch's own would make tensors of arrays
        num_workers=num_workers,
        prefetch_factor=ahead,
        multiprocessing_context="fork",
        worker_init_fn=lambda worker: leave_signals_to_parent(),
        sampler=sampler,
    )
    with deferred():
        loaded = iter(loader)
    try:
        for item, noted in loaded:
            say(noted)
            yield _converted(item, np.ndarray, torch.from_numpy)
    finally:
        with deferred():
            del loaded  # which ends the workers


def _num_ahead(num_workers: int, at_once: int) -> int:
    return max(_AHEAD, -(-_AHEAD * at_once // num_workers))


def shared_bytes(num_workers: int, item_bytes: int, at_once: int) -> int:
    """What items under way take of the shared memory at most, of all processes of this machine; arguments as of `block_loader`."""
    items = num_workers * _num_ahead(num_workers, at_once) + at_once
    return items * item_bytes * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _has_room(needed: int, num_workers: int) -> bool:
    """Whether the shared memory has room for so much; a line where it has not."""
    if not os.path.isdir(SHARED_MEMORY):
        return True
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    if needed > free and os.environ.get("LOCAL_RANK", "0") == "0" and not _told:
        _told.append(True)
        needs = f"{num_workers} worker(s) need up to {needed / 2**20:,.0f} MiB there to send pictures"
        print(
            f"warning: {SHARED_MEMORY} has {free / 2**20:,.0f} MiB free; {needs}, and use pipes instead, which is slower. "
            f"To mend it, give the container more (docker run --shm-size=1g), or take fewer workers ({called('num_workers')})",
            file=sys.stderr,
            flush=True,
        )
    return needed <= free


class _Sent(Dataset):  # type: ignore[type-arg]
    """The same items with tensors in shared memory, or arrays in their place, which a pipe takes as they are; each with what was warned of
    its pictures.

    Left to torch, a tensor for which there is no room is lost in the worker, and its parent waits for it for ever.
    """

    def __init__(self, items: "Dataset[Any]", *, is_shared: bool) -> None:
        self._items, self._is_shared = items, is_shared

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> tuple[Any, list[Noted]]:
        with taken() as noted:
            item = self._items[key]
        if self._is_shared:
            with suppress(RuntimeError):  # somebody else has filled it since
                return _converted(item, torch.Tensor, torch.Tensor.share_memory_), noted
        return _converted(item, torch.Tensor, torch.Tensor.numpy), noted


def _converted(item: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """An item whose own values of a kind, or those of its fields, are converted."""
    if isinstance(item, kind):
        return convert(item)
    if isinstance(item, tuple):
        return tuple(_converted(part, kind, convert) for part in item)
    if is_dataclass(item) and not isinstance(item, type):
        return replace(item, **{field.name: _converted(getattr(item, field.name), kind, convert) for field in fields(item)})
    return item


@atexit.register
def _end_workers() -> None:
    """Where an error ends the program its loaders are never closed, and Python would wait for ever for workers that ignore its SIGTERM."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise that a worker was killed
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()

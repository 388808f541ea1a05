"""What this machine can do at most: the rates that the arithmetic limit of a row is made of."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

_SIDE, _COPIED, _WRITTEN = 2048, 2**28, 2**28


def rates(place: Path) -> dict[str, float]:
    """{"float32", "bfloat16": FLOP/s of a product of matrices; "memory": bytes/s of a copy, read and written; "disk": bytes/s written and
    flushed to the disk of `place`}, each the best of a few trials."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        one = torch.randn(_SIDE, _SIDE).to(dtype)
        found[name] = 2 * _SIDE**3 / _fastest(lambda one=one: one @ one)  # type: ignore[misc]
    source, target = torch.ones(_COPIED // 4), torch.zeros(_COPIED // 4)
    found["memory"] = 2 * _COPIED / _fastest(lambda: target.copy_(source))
    found["disk"] = _WRITTEN / _fastest(lambda: _write(place / "written"), 2)
    (place / "written").unlink()
    return found


def _fastest(work: Callable[[], object], trials: int = 5) -> float:
    best = float("inf")
    for _ in range(trials):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _write(path: Path) -> None:
    content = os.urandom(2**20) * (_WRITTEN // 2**20)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

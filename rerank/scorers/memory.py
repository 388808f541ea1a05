"""How many captions of an image a GPU scores at once: as many as a share of its memory has room for, and half as many where it has not."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

MOST = 256  # more fill no GPU better
_TRIAL = 16  # captions
_SHARE = 0.25  # of the whole memory, free or not: the same number, and so the same bits, on every GPU of a kind, whoever else is on it
_told: list[bool] = []  # that it has no room: a line is enough


def fitting_memory(score: Callable[[list[tuple[int, ...]]], object], max_tokens: int, device: torch.device) -> int:
    """Captions to score at once on a GPU, by what a trial of some of the longest takes of its memory.

    A power of two, so that a trial that takes a little more or less gives the same number.

    Args:
        score: scores captions, given by their token ids, together; their scores are not used.
        max_tokens: tokens of the longest.
    """
    longest = [(0,) * max_tokens] * _TRIAL
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with halving(_TRIAL, "a trial") as halved:
        score(longest)
    if halved.size is not None:
        return halved.size
    used = torch.cuda.max_memory_allocated(device) - before
    return fitting(torch.cuda.get_device_properties(device).total_memory, used / _TRIAL)


def fitting(total_bytes: float, caption_bytes: float) -> int:
    """The largest power of two, MOST at most and 1 at least, of which so many captions take a quarter of a GPU's bytes at most.

    >>> fitting(16e9, 4e6), fitting(2e9, 4e6), fitting(2e6, 4e6)
    (256, 64, 1)
    """
    return min(MOST, 2 ** math.floor(math.log2(max(1.0, _SHARE * total_bytes / max(1.0, caption_bytes)))))


@dataclass
class Halved:
    """How many captions to try next; None: those that were tried went through."""

    size: int | None = None


@contextmanager
def halving(size: int, name: str) -> Iterator[Halved]:
    """Go on after a GPU had no room for so many captions, with half of them as what is yielded says; said once.

    Args:
        size: how many are scored in here.
        name: of the cross-encoder.

    Raises:
        torch.OutOfMemoryError: there is no room for one.
    """
    found = Halved()
    try:
        yield found
    except torch.OutOfMemoryError:
        if size == 1:
            raise
        found.size = size // 2
    if found.size is not None:  # the error, which holds what was computed, is gone
        torch.cuda.empty_cache()
        if not _told:
            _told.append(True)
            line = f"warning: {name}: the GPU has no room for {size} captions of a picture at once; {found.size} from here on"
            print(f"{line}. Scores change by float noise only", file=sys.stderr, flush=True)

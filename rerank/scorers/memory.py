"""How many captions of an image a GPU scores at once: as many as its free memory has room for, and half as many where it has not."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

MOST = 256  # more fill no GPU better
_TRIAL = 16  # captions
_SHARE = 0.5  # of the free memory: another process, or longer lists, may want some
_told: list[bool] = []  # that it has no room: a line is enough


def fitting_memory(score: Callable[[list[tuple[int, ...]]], object], max_tokens: int, device: torch.device) -> int:
    """Captions to score at once on a GPU, by what a trial of some of the longest takes of its memory.

    A power of two, so that a little more or less free memory gives the same number, and so the same bits.

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
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, at hand without asking for more
    return fitting(torch.cuda.mem_get_info(device)[0] + unused, used / _TRIAL)


def fitting(free_bytes: float, caption_bytes: float) -> int:
    """The largest power of two, MOST at most and 1 at least, of which so many captions take half of the free bytes at most.

    >>> fitting(8e9, 4e6), fitting(1e9, 4e6), fitting(1e6, 4e6)
    (256, 64, 1)
    """
    return min(MOST, 2 ** math.floor(math.log2(max(1.0, _SHARE * free_bytes / max(1.0, caption_bytes)))))


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

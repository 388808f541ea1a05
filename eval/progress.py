"""The progress bar every long loop shows: lively on a terminal, a line now and then in a log file."""

import sys
from typing import Any

from tqdm import tqdm

_LOG_FILE_SECONDS = 15.0


def bar(total: int | None, text: str, unit: str, *, show: bool = True, leave: bool = True, initial: int = 0) -> Any:
    """A tqdm bar on stderr, silent without `show` (on other processes than the main one); `total` is None where it is not known."""
    interval = 0.2 if sys.stderr.isatty() else _LOG_FILE_SECONDS
    return tqdm(
        total=total,
        desc=text,
        unit=unit,
        initial=initial,
        disable=not show,
        leave=leave,
        mininterval=interval,
        maxinterval=max(10.0, interval),
        smoothing=0.05,
        dynamic_ncols=True,
    )

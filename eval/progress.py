"""What a long command shows while it works: a bar on a terminal, whole lines with the time in a log, and both in a run's log.txt."""

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from eval.errors import naming

LOG_SECONDS = 15.0
"""Between two lines of one loop in a log."""
_WITH_BAR = "{desc} {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"
_SHORT = "{desc} {n_fmt}/{total_fmt} {remaining} left{postfix}"
Part = tuple[str, str]
"""A fact of a line that is renewed, and the same in short."""
_logs: list[TextIO] = []
"""The open log.txt of this process, if it has one."""


def bar(total: int | None, text: str, unit: str, *, show: bool = True, leave: bool = True, initial: int = 0) -> "Bar":
    """The progress of a loop, silent without `show` (on other processes than the main one); `total` is None where it is not known."""
    return Bar(total, text, unit, show=show, leave=leave, initial=initial)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line above whatever bar there is, and put it into the log.

    Args:
        file: where it goes; None: stdout.
    """
    shown = file or sys.stdout
    tqdm.write(_folded(line) if shown.isatty() else line, file=shown)
    note(line)


def _folded(text: str) -> str:
    """Lines folded at blanks where the terminal would break them anywhere, in the middle of a number too."""
    width = shutil.get_terminal_size().columns
    options: dict[str, Any] = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    lines = [textwrap.wrap(line, width, **options) if len(line) > width else [line] for line in text.split("\n")]
    return "\n".join("\n".join(parts) for parts in lines)


def note(line: str) -> None:
    """Put a line into the log alone, with the time."""
    for log in _logs:
        with naming(log.name):
            log.writelines(f"{_now()} {part}\n" for part in line.strip("\n").split("\n"))
            log.flush()


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """What is said in this process meanwhile is appended to a file too.

    Raises:
        OSError: it cannot be written.
    """
    with naming(path):
        log = path.open("a", encoding="utf-8")
    with log:
        _logs.append(log)
        try:
            yield
        finally:
            _logs.remove(log)


class Bar:
    """A tqdm bar where stderr is a terminal; where it is not, and in log.txt, a line every LOG_SECONDS."""

    def __init__(self, total: int | None, text: str, unit: str, *, show: bool, leave: bool, initial: int) -> None:
        shows_bar = show and sys.stderr.isatty()
        self._bar: Any = None
        if shows_bar:
            self._bar = tqdm(
                total=total, desc=text, unit=unit, initial=initial, leave=leave, mininterval=0.2, smoothing=0.05, dynamic_ncols=True
            )
        self._lines: Lines | None = None
        if show:
            self._lines = Lines(total, text, unit, initial, note if shows_bar else _show, leave)

    def update(self, count: int = 1) -> None:
        """Go on by so many units."""
        if self._bar is not None:
            self._bar.update(count)
        if self._lines is not None:
            self._lines.update(count)

    def set_parts(self, parts: Sequence[Part]) -> None:
        """What is said behind the progress; where the terminal is too narrow, first in short, and then the last parts are left out, so that
        no number is cut."""
        if self._bar is not None:
            self._bar.bar_format, texts = self._fitting(parts)
            self._bar.set_postfix_str(", ".join(texts), refresh=False)
        if self._lines is not None:
            self._lines.postfix = ", ".join(text for text, _ in parts)

    def _fitting(self, parts: Sequence[Part]) -> tuple[str, list[str]]:
        """(the line's form, what of the parts it has)."""
        now, total = self._bar.format_dict, f"{self._bar.total}"
        width = shutil.get_terminal_size().columns if now["ncols"] is None else now["ncols"]
        rate = now["rate"] or (now["n"] - now["initial"]) / max(now["elapsed"], 1e-9)
        hours = 4 if rate > 0 and (self._bar.total - now["n"]) / rate > 0.8 * 3600 else 0  # more characters than of minutes

        def fit(form: str, texts: list[str]) -> bool:
            before = form.format(desc=now["prefix"], n_fmt=total, total_fmt=total, bar="-", remaining="00:00", postfix="")
            return len(before) + hours + sum(len(text) + 2 for text in texts) <= width

        texts = [text for text, _ in parts]
        if fit(_WITH_BAR, texts):
            return _WITH_BAR, texts
        texts = [short for _, short in parts]
        while texts and not fit(_SHORT, texts):
            texts.pop()
        return _SHORT, texts

    def close(self) -> None:
        """The loop is left."""
        if self._bar is not None:
            self._bar.close()
        if self._lines is not None:
            self._lines.close()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Lines:
    """A loop's progress as lines: the first after LOG_SECONDS, so that a short one says nothing; the last where it is left with more."""

    def __init__(self, total: int | None, text: str, unit: str, initial: int, write: Callable[[str], None], leave: bool) -> None:
        self._total, self._text, self._unit, self._write, self._leave = total, text, unit, write, leave
        self._count = self._first = self._written = initial
        self._started = self._last = time.monotonic()
        self.postfix = ""

    def update(self, count: int) -> None:
        """Go on by so many units."""
        self._count += count
        if time.monotonic() - self._last >= LOG_SECONDS:
            self._say()

    def close(self) -> None:
        """Write the last line of a loop that leaves one."""
        if self._leave and self._count > self._written:
            self._say()
        self._leave = False

    def _say(self) -> None:
        self._last, self._written = time.monotonic(), self._count
        seconds, done = self._last - self._started, self._count - self._first
        of = "" if self._total is None else f" of {self._total:,}"
        rate = done / seconds if seconds > 0 else 0.0
        left = "" if self._total is None or not rate else f", {in_words((self._total - self._count) / rate)} left"
        said = f", {self.postfix}" if self.postfix else ""
        self._write(f"{self._text}: {self._count:,}{of} {self._unit}s, {rate:.3g} a second{left}{said}")


def in_words(seconds: float) -> str:
    """A duration.

    >>> in_words(4.4), in_words(125), in_words(7500)
    ('4 s', '2 min 5 s', '2 h 5 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _show(line: str) -> None:
    print(f"{_now()} {line}", file=sys.stderr, flush=True)
    note(line)


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")

"""The signals that end a command: SIGTERM, SIGHUP (a dropped ssh), SIGUSR1 (Slurm's warning) and SIGINT (Ctrl-C).

A run of training notes the signal and ends with a checkpoint; any other command is interrupted where it is. Whoever waits meanwhile in
another library's code is seen to by a thread, which the signal wakes: a second Ctrl-C ends the process at once.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_GRACE_SECONDS = 10.0  # an interrupted command that is still there after it waits in code that hears of no signal

Item = TypeVar("Item")


def exit_code_of(number: int) -> int:
    """130 for Ctrl-C, else 143: what a cluster's warning or a dropped ssh ends is stopped as by SIGTERM."""
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


class Interruption(KeyboardInterrupt):
    """A signal, raised where the command is; carries its number."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else f"told to by {signal.Signals(number).name}")
        self.number = number


class _Woken(BaseException):
    """A signal came during `next_item`."""


class StopSignals:
    """Catches the signals while it is entered.

    Attributes:
        received: the last one.
        last_words: called when a second Ctrl-C ends the process; what it returns is printed.
    """

    active: "StopSignals | None" = None

    def __init__(self, *, raises: bool = False) -> None:
        """raises: the first signal raises an Interruption in the main thread; else it is noted only."""
        self.received: int | None = None
        self.last_words: Callable[[], str] = lambda: "interrupted"
        self._raises, self._wakes, self._num_deferring, self._is_due = raises, False, 0, False
        self._previous: dict[int, Any] = {}
        self._outer: StopSignals | None = None
        self._outer_fd = -1
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> "StopSignals":
        # Handlers can be set in the main thread alone; elsewhere (a test that runs a job in a thread) there is nothing to catch.
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)
        self._outer_fd = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
        self._outer, StopSignals.active = StopSignals.active, self
        threading.Thread(target=self._watch, args=(self._ends[0],), daemon=True).start()
        for number in STOP_SIGNALS:
            # What the caller has this process ignore stays ignored (nohup); a run heeds SIGTERM and Ctrl-C whatever it was born with.
            if signal.getsignal(number) != signal.SIG_IGN or (not self._raises and number in (signal.SIGTERM, signal.SIGINT)):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ends is None:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._outer_fd)
        StopSignals.active = self._outer
        self._ends[1].close()  # which ends the thread

    def _receive(self, number: int, _: FrameType | None) -> None:
        is_first, self.received = self.received is None, number
        self._is_due |= self._wakes or (self._raises and is_first)
        if not self._num_deferring:
            self._raise_due()

    def _raise_due(self) -> None:
        """Raise what a signal has made due."""
        if not self._is_due:
            return
        self._is_due = self._wakes = False
        raise Interruption(self.received or signal.SIGTERM) if self._raises else _Woken

    @contextmanager
    def _defer(self) -> Iterator[None]:
        self._num_deferring += 1
        try:
            yield
        finally:
            self._num_deferring -= 1
        self._raise_due()

    def _watch(self, end: socket.socket) -> None:
        """End the process at a second Ctrl-C, or where an interrupted command does not end."""
        num_interrupts, first = 0, 0
        end.settimeout(None)
        while True:
            try:
                received = end.recv(64)
            except TimeoutError:
                end_at_once(exit_code_of(first), str(Interruption(first)))
            except OSError:
                return
            if not received:
                end.close()
                return
            numbers = [number for number in received if number in STOP_SIGNALS]  # torch handles SIGCHLD
            if not numbers:
                continue
            first = first or numbers[0]
            num_interrupts += numbers.count(signal.SIGINT)
            if num_interrupts > 1:
                end_at_once(exit_code_of(signal.SIGINT), self.last_words())
            if self._raises:
                end.settimeout(_GRACE_SECONDS)

    @property
    def asked(self) -> bool:
        """True once a signal came."""
        return self.received is not None

    def ask(self) -> None:
        """Have the run stop as at a signal; from any thread."""
        self.received = self.received or signal.SIGTERM

    @property
    def exit_code(self) -> int:
        """Of an end by this signal; a process that stops because another was asked exits with 143."""
        return exit_code_of(self.received or signal.SIGTERM)

    def next_item(self, items: Iterator[Item]) -> Item | None:
        """The next item; None if a signal came, or comes, before it is there; of a command that a signal interrupts, the next item."""
        if self._raises:
            return next(items)
        try:
            return self._next(items)
        except _Woken:
            return None

    def _next(self, items: Iterator[Item]) -> Item | None:
        if self.asked:
            return None
        try:
            self._wakes = True
            return next(items)
        finally:
            self._wakes = self._is_due = False


def next_item(items: Iterator[Item]) -> Item | None:
    """The next item; None where a run that goes on under `StopSignals` was told to stop before it is there."""
    return next(items) if StopSignals.active is None else StopSignals.active.next_item(items)


@contextmanager
def deferred() -> Iterator[None]:
    """Let what a signal raises wait until the end of this: what is raised where an object is made or unmade is printed, and lost."""
    active = StopSignals.active
    with nullcontext() if active is None or threading.current_thread() is not threading.main_thread() else active._defer():
        yield


def end_at_once(exit_code: int, text: str) -> NoReturn:
    """End the process where it is, with one line (of the main process) and without its children."""
    with suppress(Exception):
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped: {text}", file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():
            child.kill()
    os._exit(exit_code)


def guard_imports() -> None:
    """End at once, with one line, at a signal that comes while a command of `python -m` is imported: there is nothing to save yet."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, lambda number, _: end_at_once(exit_code_of(number), str(Interruption(number))))


def leave_signals_to_parent() -> None:
    """Ignore them, in a worker process; and be silent where a parent that a signal stops leaves a worker in the middle of handing over."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _unless_parent_left  # multiprocessing's thread that hands over calls it; errors of items reach the parent otherwise


def _unless_parent_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _before_fork() -> None:
    if StopSignals.active is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _after_fork_in_parent() -> None:
    if (active := StopSignals.active) is not None:
        active._num_deferring += 1  # what is raised in this hook is printed and lost; the thread sees to a command that goes on
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        active._num_deferring -= 1


def _after_fork_in_child() -> None:
    """A worker would wake its parent's thread, and print a traceback."""
    if StopSignals.active is not None:
        with suppress(ValueError):  # not the main thread
            signal.set_wakeup_fd(-1)
            leave_signals_to_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

"""What was warned of pictures while they were decoded (eval/dataset/images.py), said once in a command by its main process; and in the same
way what else the processes that read have to say (`tell`), which counts as no picture.

A loader's worker, which is new for each pass, hands up what it caught with the item (eval/encoder/loader.py); the other processes of a
group hand up theirs where all of them come together (`hand_up`).
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from eval.processes import Processes

MOST_SAID = 5
Noted = tuple[str, str]
"""(a picture, by the name that messages give it; what was warned of it); ("", a line of its own)."""

_taking: list[list[Noted]] = []  # the last of them takes what is noted; empty: it is said
_said: dict[str, str] = {}
_told: set[str] = set()
_not_handed_up: list[Noted] = []
_num_noted = 0


def note(picture: str, texts: list[str]) -> None:
    """Note what was warned of a picture that is decoded all the same: to be handed up, or said."""
    noted = picture, "; ".join(dict.fromkeys(texts))
    if _taking:
        _taking[-1].append(noted)
    else:
        say([noted])


def tell(line: str) -> None:
    """Note a warning that is not about a picture: to be handed up, or said as it is, once in a command."""
    say([("", line)])


@contextmanager
def taken() -> Iterator[list[Noted]]:
    """What is noted, or said, in here goes into the list and not to the terminal."""
    noted: list[Noted] = []
    _taking.append(noted)
    try:
        yield noted
    finally:
        _taking.pop()


def say(noted: list[Noted]) -> None:
    """Say what was not said yet in this command, a line a picture and at most MOST_SAID of them; but for the main process, keep it.

    What is not about a picture is not bounded.
    """
    if _taking:
        _taking[-1].extend(noted)
        return
    global _num_noted
    _num_noted += sum(1 for picture, _ in noted if picture)
    is_main = os.environ.get("RANK", "0") == "0"
    for picture, text in noted:
        if picture in _said or (not picture and text in _told):
            continue
        if picture:
            _said[picture] = text
        else:
            _told.add(text)
        if not is_main:
            _not_handed_up.append((picture, text))
        elif not picture:
            _write(f"warning: {text}")
        elif len(_said) <= MOST_SAID:
            _write(f"warning: {picture}: {text}, decoded all the same")


def num_noted() -> int:
    """How often something was warned of a picture, said again or not, as far as this process was told; it only grows."""
    return _num_noted


def hand_up(processes: "Processes") -> None:
    """Let the main process say what the others caught; call on every process."""
    if processes.world_size == 1:
        return
    own = json.dumps(_not_handed_up).encode("utf-8", "surrogatepass") if _not_handed_up else b""
    _not_handed_up.clear()
    parts = processes.gather(np.frombuffer(own, dtype=np.uint8))
    if processes.is_main:
        say([(picture, text) for part in parts if len(part) for picture, text in json.loads(part.tobytes())])


@contextmanager
def said_once() -> Iterator[None]:
    """A command: what is said in it is said once, and the number of those that were not named at its end."""
    _said.clear()
    _told.clear()
    try:
        yield
    finally:
        left = len(_said) - MOST_SAID
        if left > 0 and os.environ.get("RANK", "0") == "0":
            _write(f"warning: {left:,} more picture(s) with such a warning, decoded all the same; ./launch.sh check names them all")


def _write(line: str) -> None:
    from eval.progress import say

    say(line, file=sys.stderr)

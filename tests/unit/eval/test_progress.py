"""What a long loop shows: whole lines with the time where there is no terminal, and the same in a log."""

import os
import re
from pathlib import Path

import pytest

from eval import progress
from eval.progress import bar, in_words, logged_to, say

_STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def test_lines_instead_of_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every LOG_SECONDS of a clock that goes a second an update; no carriage return, no cursor code."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with bar(40, "demo", "step", initial=0) as shown:
        for number in range(40):
            clock[0] += 1
            shown.set_parts([(f"loss {number}", "")])
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    assert [re.fullmatch(_STAMP + r"demo: (\d+) of 40 steps, 1 a second, (\d+ s) left, loss (\d+)", line).groups() for line in lines] == [
        ("15", "25 s", "14"),
        ("30", "10 s", "29"),
        ("40", "0 s", "39"),
    ]  # type: ignore[union-attr]
    with bar(100, "short", "row", leave=False) as shown:
        shown.update(100)
    with bar(None, "hidden", "row", show=False) as shown:
        clock[0] += 100
        shown.update(100)
    assert capsys.readouterr().err == "", "what is over in an instant, or is another process's, says nothing"


def test_the_log_has_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    log = tmp_path / "log.txt"
    for word in ("first", "second"):
        with logged_to(log):
            say(word)
            with bar(None, "reading", "row") as shown:
                clock[0] += 20
                shown.update(10)
    say("after")
    found = capsys.readouterr()
    assert found.out.splitlines() == ["first", "second", "after"]
    shown_lines = [re.sub(_STAMP, "", line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert shown_lines == ["first", "reading: 10 rows, 0.5 a second", "second", "reading: 10 rows, 0.5 a second"]
    assert all(re.match(_STAMP, line) for line in log.read_text(encoding="utf-8").splitlines())
    assert found.err.splitlines() == [line for line in log.read_text(encoding="utf-8").splitlines() if "reading" in line]


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (-1, "0 s")])
def test_durations(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (110, "loss 1.9901, val R@1 27.50 / 25.71, 273 images/s, waiting 5%, rate 0.00027"),
        (80, "loss 1.990, R@1 27.5/25.7, 273 img/s, wait 5%, lr 3e-4"),
        (60, "loss 1.990, R@1 27.5/25.7"),
        (24, ""),
    ],
)
def test_a_narrow_terminal_gets_whole_numbers(
    width: int, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not fit is said in short, then left out from the end; the line is never cut."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((width, 24)))
    parts = [("loss 1.9901", "loss 1.990"), ("val R@1 27.50 / 25.71", "R@1 27.5/25.7"), ("273 images/s", "273 img/s")]
    with bar(400, "demo", "step") as found:
        found._bar.ncols, found._bar.dynamic_ncols = width, None
        found.set_parts([*parts, ("waiting 5%", "wait 5%"), ("rate 0.00027", "lr 3e-4")])
        found.update(50)
        found._bar.refresh()
    line = capsys.readouterr().err.split("\r")[-1].rstrip()
    assert len(line) <= width and "demo 50/400" in line
    assert line.endswith(f"left, {shown}" if shown else "left")

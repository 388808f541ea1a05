"""benchmarks/terminal.py and docs/terminal: what a run says fits its terminal, with no number cut, and is what is committed."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from benchmarks.terminal import FOLDER, WIDTHS, masked, read, screen
from eval.report.answer import MOST_LINES, WIDTH, answer_lines
from eval.report.report import print_report, read_report
from tests.small_job import SmallWorld
from train.__main__ import run as run_job

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "terminal.txt"


def test_a_screen_shows_what_a_terminal_would() -> None:
    assert screen("50%\r100%\rok\r\n", 10) == "ok0%\n"
    assert screen("one\r\ntwo\r\n\x1b[A\x1b[Anew\x1b[K\r\n\r\n", 10) == "new\ntwo\n"
    assert screen("\x1b[1;31mabcdef\x1b[0m\r\ngh", 4) == "abcd\nef\ngh\n"


def test_masks_leave_nothing_of_one_run_alone() -> None:
    text = "2026-11-30 15:02:01 run /a/x/demo: siglip-tuner 0.1.0, commit fa00ef6-dirty\ntook      3 min 2 s; what\n(looked at in 0.5 s)\n"
    expected = "DATE TIME run runs/demo: siglip-tuner 0.1.0, commit COMMIT\ntook      TIME; what\n(looked at in TIME)\n"
    assert masked(text, Path("/a/x")) == expected


@pytest.mark.parametrize("name", WIDTHS)
def test_the_demo_fits_its_terminal_and_ends_in_the_answer(name: str) -> None:
    """Its tables and its answer are those of results/demo, which the README's are."""
    text, width = (FOLDER / f"demo-{name}.txt").read_text(encoding="utf-8"), WIDTHS[name]
    lines = text.splitlines()
    assert "…" not in text and "\r" not in text and "\x1b" not in text
    assert width is None or max(map(cell_len, lines)) <= width
    last = text.rstrip("\n").rpartition("\n\n")[2].splitlines()
    assert len(last) <= MOST_LINES and max(map(len, last)) <= WIDTH
    assert last[:3] == answer_lines(read_report(ROOT / "results" / "demo"), first="tuned")
    assert [line.split()[0] for line in last[-4:]] == ["report", "export", "picture", "next"]
    assert not re.search(r"(?<![\w.])/\w", text)


@pytest.mark.parametrize("name", WIDTHS)
def test_the_tables_of_the_kept_report_are_those_of_the_recorded_demo(name: str) -> None:
    width = WIDTHS[name]
    console = Console(file=io.StringIO(), width=width, force_terminal=width is not None, no_color=True)
    print_report(read_report(ROOT / "results" / "demo"), console=console)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]
    tables = [line for line in printed.splitlines() if line[:1] in "┏┃┡│└"]
    recorded = (FOLDER / f"demo-{name}.txt").read_text(encoding="utf-8").splitlines()
    assert len(tables) > 30 and tables == [line for line in recorded if line[:1] in "┏┃┡│└"][: len(tables)]


def without_figures(text: str) -> str:
    """Words alone: numbers are another machine's rounding, blanks and ends of lines follow from the length of a folder's name."""
    text = re.sub(r"^job .*$| \(best so far\)", "", re.sub(r"[0-9a-f]{16}", "HASH", text), flags=re.MULTILINE)
    return " ".join(re.sub(r"[\d.,+-]+(e-?\d+)?", "#", re.sub(r"[│┃━┏┓└┘┴┳╇┡┩─]+", " ", text)).split())


def test_a_small_run_says_on_80_columns_what_is_committed(small_world: SmallWorld, tmp_path: Path) -> None:
    """To make the file anew: `python -m tests.unit.benchmarks.test_terminal`."""
    found = recorded(small_world, tmp_path)
    assert max(map(cell_len, masked(found).splitlines())) <= 80
    assert without_figures(found) == without_figures(GOLDEN.read_text(encoding="utf-8"))


def said_here(call: Callable[[], int], width: int) -> str:
    """What a call in this process leaves on a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    raw: list[bytes] = []
    reader = threading.Thread(target=lambda: raw.extend(iter(lambda: read(master), b"")))
    reader.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(slave, "w") as terminal, redirect_stdout(terminal), redirect_stderr(terminal):
        patch.setenv("COLUMNS", str(width))
        assert call() == 0
    reader.join()
    os.close(master)
    return screen(b"".join(raw).decode(), width)


def recorded(world: SmallWorld, folder: Path) -> str:
    """A run of four steps in a folder, as 80 columns show it; its paths are short, and the same everywhere."""
    folder.mkdir(exist_ok=True)
    (folder / "data").symlink_to(world.manifest.parent)
    (folder / "base").symlink_to(world.base)
    changes: dict[str, Any] = {"train__max_steps": 4, "train__eval_every_steps": 2, "mining__mine_every_steps": 2, "curves": True}
    changes |= {"data__source": "data/pairs.jsonl", "model__base": "base"}
    config = world.write_config(folder, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return masked(said_here(lambda: run_job([str(config), "runs_folder=runs"]), 80))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        GOLDEN.write_text(recorded(SmallWorld.make(Path(temporary) / "world"), Path(temporary) / "run"), encoding="utf-8")

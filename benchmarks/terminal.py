"""What a run says on a terminal of 80 and of 100 columns, and in a file, as it stands there at the end: docs/terminal.

    python -m benchmarks.terminal                           # the demo, three times, in temporary folders: minutes
    python -m benchmarks.terminal --runs-folder runs        # what a finished demo says when its command is given again: seconds

Times, commit and folders are masked. A test compares tables and answer with results/demo, and a very small run with tests/golden.
"""

import argparse
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "terminal"
WIDTHS = {"80": 80, "100": 100, "file": None}
"""Name of a recording -> columns; None: a file."""
_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\x00-\x1f])|([^\x00-\x1f])")
_MASKS = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE TIME"),
    (r"(siglip-tuner [\w.]+, commit\s+)[\w-]+", r"\1COMMIT"),
    (r"^(took +)(\d+ [a-z]+ ?)+", r"\1TIME"),
    (r"\(looked at in [\d.]+ s\)", "(looked at in TIME)"),
)


def said(words: Sequence[str], width: int | None) -> str:
    """What a command leaves on a terminal of so many columns, or writes into a file, both streams.

    Raises:
        RuntimeError: it fails.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    if width is None:
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        code, text = done.returncode, done.stdout
    else:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        with subprocess.Popen(words, cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave) as process:
            os.close(slave)
            raw = b"".join(iter(lambda: read(master), b""))
            os.close(master)
        code, text = process.returncode, screen(raw.decode(), width)
    if code:
        raise RuntimeError(f"{' '.join(words)} ended with {code}:\n{text}")
    return text


def read(terminal: int) -> bytes:
    """What has come to a terminal's other end; nothing: no process holds the terminal any more."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # as Linux says that no process holds the other end
        return b""


def screen(raw: str, width: int) -> str:
    """What is to be seen, scrolled lines included, once a terminal of so many columns has got all of this: carriage returns overwrite, the
    cursor goes up where it is told, long lines go on in the next. Colours are left out.

    >>> screen("a bar 1\\rthe end\\r\\n\\x1b[32mgreen\\x1b[0m and more", 8)
    'the end\\ngreen an\\nd more\\n'
    """
    rows: list[list[str]] = [[]]
    row = column = 0
    for parameter, command, control, letter in _TOKEN.findall(raw):
        if command == "A":
            row = max(0, row - int(parameter or 1))
        elif command == "K":
            del rows[row][column:]
        elif control == "\r":
            column = 0
        elif control == "\n":
            row += 1
        elif letter:
            if column == width:
                row, column = row + 1, 0
            _grow(rows, row)
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = letter
            column += 1
        _grow(rows, row)
    return "\n".join("".join(line).rstrip() for line in rows).rstrip("\n") + "\n"


def _grow(rows: list[list[str]], row: int) -> None:
    rows.extend([] for _ in range(row + 1 - len(rows)))


def masked(text: str, runs_folder: Path | None = None) -> str:
    """Without what is another at each run: dates, the time that it took, the commit, and the folder of the runs."""
    for pattern, words in _MASKS:
        text = re.sub(pattern, words, text, flags=re.MULTILINE)
    return text if runs_folder is None else text.replace(str(runs_folder), "runs")


@contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder with a name as long as "runs", as seen from here, so that lines fold as they do there."""
    folder = next(path for number in range(1000) if not (path := Path(f"r{number:03d}")).exists() and not (ROOT / path).exists())
    (ROOT / folder).mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(ROOT / folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.terminal", description=__doc__.splitlines()[0])
    parser.add_argument("--runs-folder", type=Path, help="where runs/demo is finished already (default: train it anew)")
    asked = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    for name, width in WIDTHS.items():
        with short_folder() as temporary:
            runs = asked.runs_folder or temporary
            words = [sys.executable, "-m", "train", "configs/demo.yaml", f"runs_folder={runs}"]
            (FOLDER / f"demo-{name}.txt").write_text(masked(said(words, width), runs), encoding="utf-8")
        print(FOLDER / f"demo-{name}.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())

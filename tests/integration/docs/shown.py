"""What a page shows: its blocks of code, and the commands that stand in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
OURS = ("./launch.sh", "torchrun", "accelerate", "python")
_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```[ \t]*$", flags=re.MULTILINE | re.DOTALL)
_OPEN = re.compile(r"^\.\.\.$|^\[|^[^[]*\]$|\w\|\w")
_VARIABLE = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A block of code; `line` is the page's line of its first one."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command as it is given: variables before it, and its words."""

    place: str
    variables: dict[str, str]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    """Every block of code of a page."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, found.start(3)) + 1, found[2], found[3]) for found in _BLOCK.finditer(text)]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block of `bash`.

    What needs several GPUs or machines, packages to be installed or a network is in a block of `console`, which is shown only.

    Raises:
        ValueError: a line is no command of this project, or is left open.
    """
    for line in filter(None, block.text.replace("\\\n", " ").splitlines()):
        words = shlex.split(line, comments=True)
        variables = {}
        while words and _VARIABLE.match(words[0]):
            name, _, variables[name] = words.pop(0).partition("=")
        if words and (words[0] not in OURS or any(_OPEN.search(word) for word in words)):
            raise ValueError(f"{block}: `{line}` cannot be run by a test: write it out whole, or into a block of `console`")
        if words:
            yield Command(str(block), variables, tuple(words))

"""A result's conclusion, from the table in results/README.md: the first line of its page, kept when the page is made again."""

import re
from pathlib import Path

INDEX = Path(__file__).resolve().parents[1] / "results" / "README.md"


def conclusions(index: str) -> dict[str, str]:
    """Page (of results/, without .md) -> its conclusion.

    >>> conclusions("| [nulls](nulls.md) | They cover. |")
    {'nulls': 'They cover.'}
    """
    return dict(re.findall(r"^\| \[([\w/-]+)\]\(\1\.md\) \| (.+) \|$", index, flags=re.MULTILINE))


def title_lines(page: str, title: str) -> list[str]:
    """The first lines of a page: its title, its conclusion, and an empty line after each.

    Raises:
        KeyError: the page has no line in results/README.md.
    """
    return [f"# {title}", "", f"**{conclusions(INDEX.read_text(encoding='utf-8'))[page]}**", ""]

"""Tables on a terminal: a number and a verdict are always whole; names fold, and where that is not enough columns are left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import HEAVY_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

_FORMS = ((1, 12), (0, 10), (0, 9))
"""Blanks at each side of a cell, and the width that names keep as long as there is a column to leave out instead; the first that fits."""
_LEAST_NAME_WIDTH = 3
_HEADER_WORD = 11


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        is_name: its cells are names or words, which may fold over several lines; others are never broken.
        is_right: justified right.
        left_out: where columns have to be left out, those with the least number go first; None: it is never left out.
    """

    header: str
    is_name: bool = False
    is_right: bool = False
    left_out: int | None = None


def print_table(
    console: Console,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    whole: str,
    styles: Sequence[str | None] | None = None,
) -> None:
    """Print a table within the width of the terminal; a file or a pipe gets every column, however wide.

    A table whose remaining columns are wider than the terminal even so is printed as it is, and the terminal wraps its lines.

    Args:
        rows: a cell for each column, as plain text (no markup), with its style in `styles`.
        whole: where every column can be read, e.g. "all are in report.json".
    """
    natural = [max(map(cell_len, [column.header, *(row[place] for row in rows)])) for place, column in enumerate(columns)]
    limit = console.width if console.is_terminal else sum(natural) + 3 * len(columns) + 1
    shown, widths, padding = _fitted(columns, rows, natural, limit)
    table = Table(title=Text(title, style="table.title"), title_justify="left", header_style="bold", box=HEAVY_HEAD, padding=(0, padding))
    for place, width in zip(shown, widths, strict=True):
        column = columns[place]
        table.add_column(Text(column.header), justify="right" if column.is_right else "left", width=width, overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*(Text(row[place]) for place in shown), style=styles[number] if styles else None)
    width = max(limit, sum(widths) + (2 * padding + 1) * len(widths) + 1)
    console.print(Segments(console.render(table, console.options.update_width(width))), soft_wrap=True, end="")
    missing = [column.header for place, column in enumerate(columns) if place not in shown]
    if missing:
        console.print(f"left out at {limit} columns: {', '.join(missing)}; {whole}", markup=False, highlight=False, soft_wrap=True)


def _fitted(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], natural: Sequence[int], limit: int
) -> tuple[list[int], list[int], int]:
    """(places of the columns that are shown, their widths, blanks at each side of a cell): the most columns that fit."""
    cells = [[row[place] for row in rows] for place in range(len(columns))]
    gone = [place for _, place in sorted((column.left_out, place) for place, column in enumerate(columns) if column.left_out is not None)]
    for number in range(len(gone) + 1):
        shown = [place for place in range(len(columns)) if place not in gone[:number]]
        for padding, name_width in _FORMS:
            least = [_readable_width(columns[place], cells[place], name_width) for place in shown]
            room = limit - (2 * padding + 1) * len(shown) - 1
            if sum(least) <= room:
                return shown, _shared_out(least, [natural[place] for place in shown], room), padding
    least = [_least_width(columns[place], cells[place], _LEAST_NAME_WIDTH) for place in shown]
    return shown, _shared_out(least, [natural[place] for place in shown], limit - len(shown) - 1), 0


def _least_width(column: Column, cells: Sequence[str], name_width: int) -> int:
    """The least width that leaves numbers and verdicts whole; names fold at `name_width`."""
    content = max(map(cell_len, cells), default=1)
    return max(min(content, name_width) if column.is_name else content, 1)


def _readable_width(column: Column, cells: Sequence[str], name_width: int) -> int:
    """The same with no word of the heading broken, unless it is longer than 11 characters."""
    header = max(map(cell_len, column.header.split()), default=0)
    return max(_least_width(column, cells, name_width), min(header, _HEADER_WORD))


def _shared_out(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """Widths from the least up to the natural ones: what room there is goes to the narrowest column that wants more."""
    widths = list(least)
    for _ in range(room - sum(widths)):
        wanting = [place for place, width in enumerate(widths) if width < natural[place]]
        if not wanting:
            break
        widths[min(wanting, key=lambda place: widths[place])] += 1
    return widths

"""Rows out of .csv, .tsv and .jsonl: these readers know line numbers and leave "None" and "NA" as text."""

import codecs
import csv
import io
import itertools
import json
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eval.dataset.images import HEIF_SUFFIXES, picture_suffixes
from eval.files import TABLE_BYTES, encoding_of, open_plain
from eval.manifest.columns import CAPTION_NAMES, COLUMNS, IMAGE_NAMES
from eval.manifest.formats.encoding import not_utf8, open_text
from eval.manifest.rows import Place, Row, RowColumns, RowSource, is_unicode, row_of

Record = tuple[int, dict[str, Any]]
"""(line, what it holds by the names of its columns)"""
Reader = Callable[[Path, list[tuple[str, str]]], tuple[list[str], Iterable[tuple[int | str, dict[str, Any]]]]]
"""(path, faults) -> (columns, records, each with its line or another place); (place, what) of rows that cannot be read go to `faults`."""

_ROWS_AT_ONCE = 16384
_SEPARATORS = (",", ";", "\t", "|")
_COLUMNS = frozenset({*COLUMNS, *IMAGE_NAMES, *CAPTION_NAMES})
_NAMES = frozenset({"image", "id", *IMAGE_NAMES})
_URL = re.compile(r"\s*https?://", re.IGNORECASE)
_RUNS = re.compile(r"([^\W\d_]+)|\d+")


class TextRows(RowSource):
    """The rows of a file that is read whole (images are paths, so it is small). Its records are let go when the rows are taken."""

    def __init__(self, path: Path, mapping: Mapping[str, str], reader: Reader, folder: Path | None = None) -> None:
        """folder: that image paths are relative to; default: the file's."""
        self.folder = folder if folder is not None else path.parent
        self.faults: list[tuple[str, str]] = []
        self.columns, records = reader(path, self.faults)
        self._records: Iterable[tuple[int | str, dict[str, Any]]] = records
        self.header_place = f"{path}:1"
        self._path, self.mapping = path, mapping

    def as_columns(self) -> RowColumns | None:
        """As `RowSource`, of .jsonl and tables in text."""
        found = self._records.as_columns() if isinstance(self._records, JsonLines | CellRows) and not self.faults else None
        if found is None:
            return None
        columns, lines_R = found
        return RowColumns(columns, [f"{self._path}:"], np.zeros(len(lines_R), dtype=np.int64), lines_R)

    def drop(self) -> None:
        """As `RowSource`."""
        self._records = []

    def __iter__(self) -> Iterator[Row]:
        records, self._records = self._records, []
        name, mapping = f"{self._path}:", self.mapping
        for place, record in records:
            yield row_of(Place(name, place) if isinstance(place, int) else f"{self._path} {place}", record, mapping)


class CellRows(Iterable[Record]):
    """(line, record) of each row of a table in text, held as columns: not a dictionary a row."""

    def __init__(self) -> None:
        self.header: list[str] = []
        self._lines = array("q")
        self._cells: list[list[str]] = []  # of the rows that are in no block yet
        self._blocks: list[list[pa.Array]] = []

    def append(self, line: int, cells: list[str]) -> None:
        """Add a row."""
        self._lines.append(line)
        self._cells.append(cells)
        if len(self._cells) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._cells:
            self._blocks.append([pa.array(cells, pa.large_string()) for cells in zip(*self._cells, strict=True)])
            self._cells.clear()

    def __iter__(self) -> Iterator[Record]:
        self._flush()
        lines = iter(self._lines)
        for block in self._blocks:
            for cells in zip(*(column.to_pylist() for column in block), strict=True):
                yield next(lines), dict(zip(self.header, cells, strict=True))

    def __len__(self) -> int:
        return len(self._lines)

    def as_columns(self) -> tuple[dict[str, pa.ChunkedArray], np.ndarray] | None:
        """(columns, int64 line of each row)."""
        self._flush()
        if not self._blocks:
            return None
        columns = {name: pa.chunked_array([block[place] for block in self._blocks]) for place, name in enumerate(self.header)}
        return columns, np.array(self._lines)


def read_csv(path: Path, faults: list[tuple[str, str]]) -> tuple[list[str], CellRows]:
    """(columns, (line, record) of each row) of a table in text; (place, what) of rows that cannot be read go to `faults`.

    The separator is what a first line `sep=;` says, else what the header shows. A table of two columns without a header, one of them paths
    of pictures, has the columns image and caption.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    table = _Table(path, faults)
    with open_text(path) as file:
        try:
            table.read(file)
        except csv.Error as error:
            remedy = 'close every quote, and write a quote inside a quoted cell as ""; nothing after this row was read'
            faults.append((f"{path}:{table.line}", f"not valid CSV: {error} (line {table.last_line}); {remedy}"))
        except UnicodeDecodeError as error:
            faults.append((f"{path}:{table.line}", f"not {error.encoding} text: {error.reason}; nothing from this row on was read"))
    return table.header, table.records


class _Table:
    """A table in text while it is read.

    Attributes:
        line, last_line: where the row that is being read begins, and how far it was read.
    """

    def __init__(self, path: Path, faults: list[tuple[str, str]]) -> None:
        self.path, self.faults = path, faults
        self.header: list[str] = []
        self.records = CellRows()
        self.line, self.last_line = 1, 0
        self._lines: list[str] = []  # of the row that is being read

    def read(self, file: Iterable[str]) -> None:
        """Read the header, then every row.

        Raises:
            csv.Error, UnicodeDecodeError: the row from `line` on cannot be read.
        """
        separator, lines = self._begin(iter(file))
        for cells in csv.reader(self._counted(lines), delimiter=separator, strict=True):
            if cells and not self.header:
                self._read_header(cells, separator)
            elif cells:
                self._read_row(cells, separator)
            self.line = self.last_line + 1
            self._lines.clear()

    def _begin(self, lines: Iterator[str]) -> tuple[str, Iterator[str]]:
        """The separator, and the lines from the header on."""
        default = "\t" if self.path.suffix.lower() == ".tsv" else ","
        for line in lines:
            said = line.strip("\r\n").strip('"')
            is_said = said[:4].lower() == "sep=" and len(said) == 5
            if line.strip() and not is_said:
                return separator_of(line, default), itertools.chain([line], lines)
            self.last_line += 1
            self.line = self.last_line + 1
            if is_said:
                return said[4], lines
        return default, lines

    def _counted(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self.last_line += 1
            self._lines.append(line)
            yield line

    def _read_header(self, cells: list[str], separator: str) -> None:
        paths = [_is_picture_name(cell) for cell in cells]
        if len(cells) == 2 and paths.count(True) == 1 and not _COLUMNS & {cell.strip().lower() for cell in cells}:
            self.header = self.records.header = ["image", "caption"] if paths[0] else ["caption", "image"]
            self._read_row(cells, separator)
            return
        self.header = self.records.header = [cell.strip() for cell in cells]
        self.faults += [(f"{self.path}:{self.line}", what) for what in _header_faults(self.header)]

    def _read_row(self, cells: list[str], separator: str) -> None:
        what = None
        if len(cells) != len(self.header):
            name = {"\t": "tabs"}.get(separator, "commas" if separator == "," else repr(separator))
            what = f"{len(cells)} cells where the header has {len(self.header)}; quote captions that hold {name}"
        elif not is_unicode("".join(cells)):
            what = not_utf8("".join(self._lines))
        elif len(self._lines) > 1 and self._holds_rows(cells, separator):
            what = f"a quoted cell holds lines {self.line} to {self.last_line}, which look like rows of their own; close its quote"
        if what is not None:
            self.faults.append((f"{self.path}:{self.line}", what))
        else:
            self.records.append(self.line, cells)

    def _holds_rows(self, row: list[str], separator: str) -> bool:
        """Whether a line of a row, other than the one with its picture's name, has all cells itself, such a name in the same place."""
        lines = [[cell.strip(' "') for cell in line.rstrip("\r\n").split(separator)] for line in self._lines]
        quoted = [place for place, cell in enumerate(row) if "\n" in cell or "\r" in cell]
        for place, (column, name) in enumerate(zip(self.header, row, strict=True)):
            if not quoted or quoted[0] <= place <= quoted[-1]:
                continue
            is_before = place < quoted[0]
            others = [cells for cells in (lines[1:] if is_before else lines[:-1]) if len(cells) >= len(row)]
            for cell in (cells[place if is_before else place - len(row)] for cells in others):
                if (_is_picture_name(name) and _is_picture_name(cell)) or (column in _NAMES and _is_numbered_alike(name, cell)):
                    return True
        return False


def _is_picture_name(text: str) -> bool:
    """Whether a cell looks like the path of a picture, or its URL."""
    return os.path.splitext(text.strip())[1].lower() in picture_suffixes() | HEIF_SUFFIXES or _URL.match(text) is not None


def _is_numbered_alike(one: str, other: str) -> bool:
    """Whether two names differ in nothing but their numbers and letters, as `img_7` and `img_12` do."""
    forms = {_RUNS.sub(lambda match: "a" if match[1] else "0", name.strip()) for name in (one, other)}
    return len(forms) == 1 and "0" in forms.pop()


def separator_of(header: str, default: str) -> str:
    """What separates the cells of a header: the one candidate under which most of them are names of columns that are known.

    >>> separator_of("image;caption, in words", ",")
    ';'
    """
    scores = {}
    for separator in _SEPARATORS:
        try:
            cells = next(csv.reader([header], delimiter=separator))
        except (csv.Error, StopIteration):
            continue
        if len(cells) > 1:
            scores[separator] = sum(cell.strip().lower() in _COLUMNS for cell in cells)
    best = [separator for separator, score in scores.items() if score == max(scores.values())]
    return best[0] if len(best) == 1 else default


def _header_faults(header: list[str]) -> list[str]:
    """A column named twice would silently lose one; bytes of another encoding in the header are in the rows too."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    faults = [f"column(s) {twice} are twice in the header; give each a name of its own"] if twice else []
    if any("\0" in name for name in header):
        faults.append("the header holds zero bytes, as UTF-16 without its byte order mark does; save the file as UTF-8")
    return faults if is_unicode("".join(header)) else [not_utf8("".join(header))]


class JsonLines(Iterable[Record]):
    """(line, record) of each JSON object of a .jsonl file, parsed as it is taken: the bytes are held, not a million dictionaries.

    Attributes:
        columns: the keys of all of them, in order of appearance.
    """

    def __init__(self, path: Path, faults: list[tuple[str, str]]) -> None:
        """(place, what) of lines that are not JSON objects go to `faults`."""
        num_known = len(faults)
        self._data = _read_in_utf8(path, faults)
        self._path, self._faults, self._faulty = path, faults, set[int]()
        self._table = _arrow_table(self._data) if len(faults) == num_known else None
        if self._table is not None:
            self.columns = self._table.column_names
            return
        columns: dict[str, None] = {}
        for line, raw in self._lines():
            try:
                record = parse_json(raw)
                what = None if isinstance(record, dict) else f"expected a JSON object, found {type(record).__name__}"
            except (ValueError, RecursionError) as error:
                what = f"not a JSON object on one line: {error}"
            if what is not None:
                faults.append((f"{path}:{line}", what))
                self._faulty.add(line)
            else:
                columns.update(dict.fromkeys(record))
        self.columns = list(columns)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        return ((line, raw) for line, raw in enumerate(io.BytesIO(self._data), 1) if raw.strip())

    def __iter__(self) -> Iterator[Record]:
        decode = json.JSONDecoder().decode
        for line, raw in self._lines():
            if line not in self._faulty:
                try:
                    yield line, decode(raw.decode())
                except RecursionError as error:  # Arrow, which read the columns, goes deeper
                    self._faults.append((f"{self._path}:{line}", f"not a JSON object on one line: {error}"))

    def as_columns(self) -> tuple[dict[str, pa.ChunkedArray], np.ndarray] | None:
        """(columns, int64 line of each row), once, where Arrow reads every line as Python's json does."""
        table, self._table = self._table, None
        return None if table is None else (dict(zip(table.column_names, table.columns, strict=True)), np.arange(1, len(table) + 1))


def _arrow_table(data: bytes) -> pa.Table | None:
    """JSON objects, each on a line of its own and none of the lines blank, as columns; None: something else is there, or Arrow and Python
    may read it otherwise."""
    import pyarrow.json  # here alone

    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            return None
    num_lines = data.count(b"\n") + (data[-1:] != b"\n")
    starts = data.count(b"\n{") + (data[:1] == b"{")
    ends = data.count(b"}\n") + data.count(b"}\r\n") + (data[-1:] == b"}")
    if not data or starts != num_lines or ends != num_lines:
        return None
    try:
        first = parse_json(data[: data.find(b"\n") if b"\n" in data else None])
        texts = pa.schema([(name, pa.string()) for name, value in first.items() if isinstance(value, str)])  # none is a date
        options = pyarrow.json.ParseOptions(explicit_schema=texts)
        pool = pa.system_memory_pool()  # the threads' shares of Arrow's own are not given back when the columns are let go
        table = pyarrow.json.read_json(pa.BufferReader(data), parse_options=options, memory_pool=pool)
        names = _by_appearance(data, first, table.column_names)
    except (ValueError, RecursionError, pa.ArrowException):
        return None
    return table.select(names) if len(table) == num_lines and len(names) == table.num_columns else None


def _by_appearance(data: bytes, first: dict[str, Any], names: list[str]) -> list[str]:
    """The keys of JSON lines in order of appearance, as far as they are in the first line or among `names`; Arrow has texts first.

    Lines are read until all but one were met: in most files that is the first alone.
    """
    found, left = dict.fromkeys(first), set(names).difference(first)
    lines = iter(io.BytesIO(data))
    while len(left) > 1 and (line := next(lines, None)) is not None:
        new = [name for name in parse_json(line) if name in left]
        found.update(dict.fromkeys(new))
        left.difference_update(new)
    return [*found, *left]


def read_jsonl(path: Path, faults: list[tuple[str, str]]) -> tuple[list[str], Iterable[Record]]:
    """(columns, (line, record) of each row) of a .jsonl file; (place, what) of lines that are not JSON objects go to `faults`."""
    records = JsonLines(path, faults)
    return records.columns, records


def parse_json(raw: bytes) -> Any:
    """The value of JSON text in UTF-8.

    Raises:
        ValueError, RecursionError: it is none, or an object has a key twice, of which Python would drop one.
    """
    return _DECODER.decode(raw.decode())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # one for all lines: json.loads would make one for each


def _read_in_utf8(path: Path, faults: list[tuple[str, str]]) -> bytes:
    """A text file in UTF-8 without byte order mark."""
    with open_plain(path, TABLE_BYTES) as file:
        data = file.read()
    if (encoding := encoding_of(data[:4])).startswith("utf-8"):
        return data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        whole = data[: error.start].decode(encoding, "ignore")
        num_lines = whole.count("\n")
        faults.append((f"{path}:{num_lines + 1}", f"not {error.encoding} text: {error.reason}; nothing from this line on was read"))
        return whole[: whole.rfind("\n") + 1].encode("utf-8", "surrogatepass")

"""Rows out of .csv, .tsv and .jsonl: these readers know line numbers and leave "None" and "NA" as text."""

import csv
import io
import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.files import TABLE_BYTES, open_plain
from eval.manifest.rows import Row, RowSource, is_unicode, row_of


class TextRows(RowSource):
    """A .csv or .jsonl file, read whole (images are paths, so it is small). A record is let go when its row is taken."""

    def __init__(self, path: Path, mapping: Mapping[str, str], reader: Any) -> None:
        self.folder = path.parent
        self.faults: list[tuple[str, str]] = []
        self.columns, records = reader(path, self.faults)
        self._records = deque(records)
        self.header_place = f"{path}:1"
        self._path, self._mapping = path, mapping

    def __iter__(self) -> Iterator[Row]:
        while self._records:
            line, record = self._records.popleft()
            yield row_of(f"{self._path}:{line}", record, self._mapping)


def read_csv(path: Path, faults: list[tuple[str, str]]) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """(columns, (line, record) of each row) of a .csv or .tsv file; (place, what) of rows that cannot be read go to `faults`."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    records: list[tuple[int, dict[str, Any]]] = []
    with io.TextIOWrapper(open_plain(path, TABLE_BYTES), encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header: list[str] = []
        line = 1
        try:
            for cells in reader:
                start, line = line, reader.line_num + 1
                if not cells:
                    continue
                if not header:
                    header = [cell.strip() for cell in cells]
                    faults += [(f"{path}:{start}", what) for what in _header_faults(header)]
                elif len(cells) != len(header):
                    faults.append(
                        (f"{path}:{start}", f"{len(cells)} cells where the header has {len(header)}; quote captions that hold commas")
                    )
                elif not is_unicode("".join(cells)):
                    faults.append((f"{path}:{start}", "not UTF-8 text; save the file as UTF-8"))
                else:
                    records.append((start, dict(zip(header, cells, strict=True))))
        except csv.Error as error:
            remedy = 'close every quote, and write a quote inside a quoted cell as ""; nothing after this row was read'
            faults.append((f"{path}:{line}", f"not valid CSV: {error} (line {reader.line_num}); {remedy}"))
    return header, records


def _header_faults(header: list[str]) -> list[str]:
    """A column named twice would silently lose one; bytes of another encoding in the header are in the rows too."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    faults = [f"column(s) {twice} are twice in the header; give each a name of its own"] if twice else []
    return faults if is_unicode("".join(header)) else ["not UTF-8 text; save the file as UTF-8"]


def read_jsonl(path: Path, faults: list[tuple[str, str]]) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """(columns, (line, record) of each row) of a .jsonl file; (place, what) of lines that are not JSON objects go to `faults`."""
    records: list[tuple[int, dict[str, Any]]] = []
    columns: dict[str, None] = {}
    with open_plain(path, TABLE_BYTES) as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                faults.append((f"{path}:{line}", f"not a JSON object on one line: {error}"))
                continue
            if not isinstance(record, dict):
                faults.append((f"{path}:{line}", f"expected a JSON object, found {type(record).__name__}"))
                continue
            columns.update(dict.fromkeys(record))
            records.append((line, record))
    return list(columns), records

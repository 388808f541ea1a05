"""The encoding of text: UTF-8, or what a file's byte order mark says. Another one is named where it shows, with the remedy.

Bytes that are not UTF-8 become surrogates, in a text file and in a column of Arrow.
"""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval.files import TABLE_BYTES, encoding_of, open_plain
from eval.manifest.rows import is_unicode

_SHOWN = 40


def open_text(path: Path, newline: str | None = "") -> io.TextIOWrapper:
    """Open a text file by its byte order mark; bytes that are not UTF-8 become surrogates, which `not_utf8` names.

    Raises:
        FileError, OSError: as `eval.files.open_plain`. Reading UTF-16 and UTF-32 that is cut raises a UnicodeDecodeError.
    """
    file = open_plain(path, TABLE_BYTES)
    encoding = encoding_of(file.peek(4))
    return io.TextIOWrapper(file, encoding, "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass", newline)


def not_utf8(text: str) -> str:
    """What is wrong with a text that holds bytes of another encoding (as surrogates), and how to mend it."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
        first = next(number for number, byte in enumerate(raw) if byte > 127)
        shown = raw.decode("cp1252")[max(0, first - _SHOWN // 2) : first + _SHOWN // 2]
    except (UnicodeError, StopIteration):
        return "not UTF-8 text; save the file as UTF-8"
    return (
        f"not UTF-8 text: it seems to be Windows-1252, as Excel's plain CSV is ({shown!r}); save the file as UTF-8 "
        "(in Excel: Save As, CSV UTF-8), or: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE"
    )


def records_of(table: Any, bad: dict[int, str] | None = None) -> list[dict[str, Any]]:
    """The rows of a table or record batch; those whose text is not UTF-8 are said in `bad`, by number from 0."""
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        names = table.schema.names
        columns = [values_of(column) for column in table.columns]
        records = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        if bad is not None:
            bad |= {row: what for row, record in enumerate(records) if (what := not_utf8_columns(record))}
        return records


def values_of(column: Any) -> list[Any]:
    """The values of a column."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]


def not_utf8_columns(record: dict[str, Any]) -> str:
    """Which columns of a record hold text that is not UTF-8, with its bytes and the remedy; empty: none."""
    found = {name: text for name, value in record.items() if (text := _bad_text(value)) is not None}
    shown = "; ".join(f"column {name!r}: {text.encode('utf-8', 'surrogateescape')!r:.80}" for name, text in found.items())
    return f"not UTF-8 text: {shown}. Write the file again with its text as UTF-8" if found else ""


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        if isinstance(cell, (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)):
            return [_value(item) for item in cell.values]
        if isinstance(cell, pa.StructScalar):
            return {name: _value(cell[name]) for name in cell}
        if isinstance(cell, (pa.DictionaryScalar, pa.ExtensionScalar)):
            return _value(cell.value)
        return cell.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")


def _bad_text(value: Any) -> str | None:
    """The first text in a value that is not UTF-8."""
    if isinstance(value, str):
        return None if is_unicode(value) else value
    parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return next((text for part in parts if (text := _bad_text(part)) is not None), None)

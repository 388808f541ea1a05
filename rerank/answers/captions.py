"""The captions of the collection: the lines of a text file, a column of a table, or those of a manifest."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import StringColumn
from eval.errors import UserError
from eval.files import TABLE_BYTES, encoding_of, read_bytes
from eval.manifest.columns import CAPTION_NAMES, map_columns
from eval.manifest.formats.lists import parsed_list
from eval.manifest.image_table import ImageTable
from eval.manifest.manifest import Fault, ManifestError, caption_fault
from rerank.expansions.text_file import read_table

TEXT_SUFFIXES = (".txt", "")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_USUAL_COLUMNS = ("caption", "captions", *CAPTION_NAMES)
_Entry = tuple[str, str, Any]
"""(place, id, value) of a caption of a file."""


@dataclass(frozen=True)
class Captions:
    """Captions in the order they were given, each text once.

    Attributes:
        source: the file.
        ids: number of the line or row (from 1), the value of the id column, or IMAGE#K; for a row with several captions ID#K.
        texts: without blanks at either end.
        num_blank: empty lines or cells, which were skipped.
        num_repeated: repeated captions, which were skipped.
        notes: what was found out by the names of columns, in lines.
    """

    source: str
    ids: Sequence[str]
    texts: Sequence[str]
    num_blank: int = 0
    num_repeated: int = 0
    notes: Sequence[str] = ()


def read_captions(source: str, *, column: str | None = None, id_column: str | None = None) -> Captions:
    """The captions of a file: one a line of a .txt; or a column of a .csv, .tsv, .jsonl or .parquet with texts or lists of texts.

    Args:
        column: of a table; by default those of a manifest: in each row `captions`, else `caption`; without both `text`, else `title`.
        id_column: of a table, with the captions' ids; by default line or row numbers.

    Raises:
        ManifestError: with everything that is wrong with the file.
        UserError: there is no such file, or its suffix is not supported.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"--captions {source}: no such file. Expected a text file, one caption a line, or {', '.join(TABLE_SUFFIXES)}")
    if suffix not in TEXT_SUFFIXES + TABLE_SUFFIXES:
        raise UserError(f"--captions {source}: expected a .txt, one caption a line, or {', '.join(TABLE_SUFFIXES)}; found *{suffix}")
    faults, notes = list[Fault](), list[str]()
    if suffix in TABLE_SUFFIXES:
        return replace(_collected(source, _table_entries(path, column, id_column, faults, notes), faults), notes=notes)
    if column is not None or id_column is not None:
        raise UserError(f"--captions {source}: a text file has no columns; leave --caption-column and --caption-id-column out")
    return _collected(source, _line_entries(path, faults), faults)


def manifest_captions(images: ImageTable, source: str) -> Captions:
    """The captions of a manifest that was read, as IMAGE#K; K continues where an image is in several splits."""
    return _collected(source, _manifest_entries(images), [])


def _manifest_entries(images: ImageTable) -> Iterator[_Entry]:
    """Images of one id follow one another; what is wrong with a caption was told when the manifest was read, so the place is left out."""
    texts, last, place = iter(StringColumn(images.captions)), "", 0
    for image, (name, count) in enumerate(zip(StringColumn(images.ids), np.diff(images.caption_offsets).tolist(), strict=True)):
        place = place if image and name == last else 0
        for _ in range(count):
            yield "", f"{name}#{place}", next(texts)
            place += 1
        last = name


def _line_entries(path: Path, faults: list[Fault]) -> Iterator[_Entry]:
    """Lines end in \\n, \\r\\n or \\r; other separators in a caption (U+2028, a form feed) do not end a line."""
    data = read_bytes(path, TABLE_BYTES)
    if (encoding := encoding_of(data[:4])).startswith(("utf-16", "utf-32")):
        try:
            data = data.decode(encoding).encode()
        except UnicodeDecodeError as error:
            faults.append(Fault(str(path), "not text", f"its mark says {encoding}, but it is not: {error.reason}; save the file as UTF-8"))
            return
    lines = re.split(rb"\r\n|\r|\n", data)
    for number, raw in enumerate(lines if lines[-1] else lines[:-1], 1):
        try:
            yield (f"{path}:{number}", str(number), raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            faults.append(Fault(f"{path}:{number}", "not UTF-8 text", f"not UTF-8 text ({error.reason}); save the file as UTF-8"))


def _table_entries(path: Path, column: str | None, id_column: str | None, faults: list[Fault], notes: list[str]) -> Iterator[_Entry]:
    unreadable: list[tuple[str, str]] = []
    columns, records = read_table("--captions", path, unreadable)
    faults += [Fault(where, "unreadable row", what) for where, what in unreadable]
    if faults:
        return
    mapping = map_columns(columns, {"image": "image"} | ({"caption": column} if column is not None else {}))
    read = [name for name in (mapping.names["captions"], mapping.names["caption"]) if name in columns] if column is None else [column]
    wanted = read[0] if read else None
    for option, name in (("--caption-column", wanted), ("--caption-id-column", id_column)):
        if name not in columns and not (name is None and option == "--caption-id-column"):
            missing = f"no column {name!r}" if name is not None else f"no column of the names {', '.join(_USUAL_COLUMNS)}"
            faults.append(Fault(str(path), "unknown column", f"{missing}; columns found: {columns}. Name the right one: {option} NAME"))
    if faults:
        return
    notes += mapping.notes
    unread = [name for name in _USUAL_COLUMNS if name in columns and name not in read] if column is None else []
    named: dict[str, str] = {}
    for number, record in records:
        where = f"{path} row {number}" if path.suffix.lower() == ".parquet" else f"{path}:{number}"
        name = str(number)
        if id_column is not None:
            value = record.get(id_column)
            name = "" if value is None else str(value)
            if not name or name in named:
                what = f"id {name!r} is at {named[name]} too" if name else "the id is empty"
                faults.append(Fault(where, "id missing or twice", f"{what}; give each caption its own id"))
            named[name] = where
        values = (parsed_list(record.get(key), quoted=key != "captions") for key in read)
        captions = next((value for value in values if value is not None), None)
        if not any(key in record for key in read) and (holding := [key for key in unread if record.get(key) not in (None, "", [])]):
            what = f"no {' or '.join(map(repr, read))}, but a {holding[0]!r}; give all captions one name, or --caption-column NAME"
            faults.append(Fault(where, "no caption", what))
        elif isinstance(captions, list) and captions:
            yield from ((where, f"{name}#{place}", text) for place, text in enumerate(captions))
        else:
            yield (where, name, captions or None)


def _collected(source: str, entries: Iterable[_Entry], faults: list[Fault]) -> Captions:
    """Captions of entries, without blank and repeated ones."""
    ids: list[str] = []
    texts: dict[str, None] = {}
    num_blank = num_repeated = 0
    for where, id, value in entries:
        text = value.strip() if isinstance(value, str) else value
        if text is None or text == "":
            num_blank += 1
        elif fault := caption_fault(where, text):
            faults.append(fault)
        elif text in texts:
            num_repeated += 1
        else:
            texts[text] = None
            ids.append(id)
    if not faults and not texts:
        found = f"{num_blank} blank lines or cells" if num_blank else "it is empty"
        faults.append(Fault(source, "empty", f"no captions: {found}. Expected at least one"))
    if faults:
        raise ManifestError(source, faults)
    return Captions(source, StringColumn(ids), StringColumn(list(texts)), num_blank, num_repeated)

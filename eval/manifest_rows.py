"""The doors of a manifest: rows out of .csv, .jsonl, .parquet and image folders, each row with the place it came from.

Our own readers take .csv and .jsonl, because they must know line numbers and must leave "None" and "NA" as the words they are;
the `datasets` library takes .parquet and keeps it memory-mapped on disk, so that a set larger than memory works.
"""

import ast
import csv
import glob
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eval.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
SPLIT_FOLDERS = ("train", "val", "validation", "valid", "dev", "test")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class EmbeddedImage:
    """Where embedded bytes lie: the row of the Arrow table; `key` is what names the picture (its id, its inner path, or its row)."""

    row: int
    key: str
    num_bytes: int


@dataclass(frozen=True)
class Row:
    """One row as it stands in the manifest; nothing is checked yet."""

    where: str
    image: Any
    embedded: EmbeddedImage | None
    captions: Any
    id: Any
    split: Any
    group: Any
    record: Mapping[str, Any]


class RowSource(Protocol):
    """An opened manifest: what it calls its columns, what could not be parsed, and its rows."""

    folder: Path
    columns: list[str]
    header_place: str
    faults: list[tuple[str, str]]

    def __iter__(self) -> Iterator[Row]: ...

    def has_usable_columns(self, mapping: Mapping[str, str]) -> bool:
        """True if an image and a caption column are there, so that rows can be checked."""
        ...

    def image_bytes(self, row: int) -> bytes:
        """Embedded bytes of a row."""
        ...


def open_rows(source: str, mapping: Mapping[str, str]) -> RowSource:
    """Open a manifest by what it is.

    Raises:
        UserError: nothing is there, it cannot be read, or it is of no known kind.
    """
    try:
        return _open_rows(source, mapping)
    except OSError as error:
        raise UserError(f"{source}: cannot be read as a manifest ({error})") from error


def _open_rows(source: str, mapping: Mapping[str, str]) -> RowSource:
    path = Path(source)
    if path.is_dir():
        parquet = sorted(path.glob("*.parquet"))
        return ArrowRows(parquet, mapping) if parquet else FolderRows(path, mapping)
    if path.is_file():
        match path.suffix.lower():
            case ".csv" | ".tsv":
                return TextRows(path, mapping, _read_csv)
            case ".jsonl" | ".ndjson":
                return TextRows(path, mapping, read_jsonl)
            case ".parquet":
                return ArrowRows([path], mapping)
        raise UserError(f"{source}: a manifest is .jsonl, .csv, .parquet or an image folder; found a file named *{path.suffix}")
    if matches := sorted(Path(match) for match in glob.glob(source) if match.endswith(".parquet")):
        return ArrowRows(matches, mapping)
    raise UserError(f"{source}: no such file or folder (data.source, or --data); paths are relative to {os.getcwd()}")


class _Rows:
    """What all row sources share."""

    columns: list[str]

    def has_usable_columns(self, mapping: Mapping[str, str]) -> bool:
        """True if an image and a caption column are there."""
        return mapping["image"] in self.columns and (mapping["caption"] in self.columns or mapping["captions"] in self.columns)

    def image_bytes(self, row: int) -> bytes:
        """Text manifests embed nothing."""
        raise TypeError("this manifest holds paths, not bytes")


class TextRows(_Rows):
    """A .csv or .jsonl file, read whole (pictures are paths, so it is small)."""

    def __init__(self, path: Path, mapping: Mapping[str, str], reader: Any) -> None:
        self.folder = path.parent
        self.faults: list[tuple[str, str]] = []
        self.columns, self._records = reader(path, self.faults)
        self.header_place = f"{path}:1"
        self._path, self._mapping = path, mapping

    def __iter__(self) -> Iterator[Row]:
        for line, record in self._records:
            yield _row(f"{self._path}:{line}", record, self._mapping)


def _row(where: str, record: Mapping[str, Any], mapping: Mapping[str, str], embedded: EmbeddedImage | None = None) -> Row:
    captions = record.get(mapping["captions"])
    if captions is None:
        captions = record.get(mapping["caption"])
    if isinstance(captions, str) and captions.startswith("[") and mapping["captions"] in record:
        captions = _parse_list(captions)
    image = record.get(mapping["image"])
    id_, split, group = (record.get(mapping[name]) for name in ("id", "split", "group"))
    return Row(where, image, embedded, captions, id_, split, group, record)


def _parse_list(text: str) -> Any:
    """A list in a .csv cell, as JSON or as Python writes one (pandas' to_csv does); anything else stays the text it is."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    return text


def _read_csv(path: Path, faults: list[tuple[str, str]]) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    records: list[tuple[int, dict[str, Any]]] = []
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
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
    faults = [f"column(s) {twice} stand twice in the header; give each a name of its own"] if twice else []
    return faults if is_unicode("".join(header)) else ["not UTF-8 text; save the file as UTF-8"]


def is_unicode(text: str) -> bool:
    """False for text with half a character (a lone surrogate): it stands for bytes that were no UTF-8, and can be written nowhere."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_jsonl(path: Path, faults: list[tuple[str, str]]) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """(columns, (line, record) of each row) of a .jsonl file; (place, what) of lines that are no JSON objects go to `faults`."""
    records: list[tuple[int, dict[str, Any]]] = []
    columns: dict[str, None] = {}
    with path.open("rb") as file:
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


class FolderRows(_Rows):
    """An image folder: metadata.jsonl/.csv with `file_name` and a caption (as `datasets` has it), or PICTURE.txt beside each picture.

    Subfolders named train, val, validation, valid, dev or test are splits; metadata of the folder itself goes before theirs.
    A sidecar .txt holds one caption a line. Hidden files are passed over (macOS leaves ._NAME.jpg in archives).
    """

    def __init__(self, folder: Path, mapping: Mapping[str, str]) -> None:
        self.folder, self._mapping = folder, mapping
        self.faults: list[tuple[str, str]] = []
        self.header_place = str(folder)
        self._records: list[tuple[str, dict[str, Any]]] = []
        self.columns: list[str] = []
        described = any((folder / name).is_file() for name in METADATA_FILES)
        parts = [folder / name for name in SPLIT_FOLDERS if (folder / name).is_dir() and not described] or [folder]
        for part in parts:
            self._read_part(part, None if part == folder else part.name)
        if not self._records and not self.faults:
            raise UserError(
                f"{folder}: no pictures with captions; expected metadata.jsonl or metadata.csv with a column file_name, "
                "or a .txt beside each picture"
            )

    def _read_part(self, part: Path, split: str | None) -> None:
        files = [part / name for name in METADATA_FILES if (part / name).is_file()]
        for file in files:
            columns, records = (_read_csv if file.suffix == ".csv" else read_jsonl)(file, self.faults)
            self.columns += [name for name in columns if name not in self.columns]
            for line, record in records:
                self._records.append((f"{file}:{line}", self._adopt(record, part, split)))
        if not files:
            self._read_sidecars(part, split)
        if any(self._mapping["split"] in record for _, record in self._records) and self._mapping["split"] not in self.columns:
            self.columns.append(self._mapping["split"])
        added = {"file_name": self._mapping["image"], "text": self._mapping["caption"]}
        self.columns += [ours for theirs, ours in added.items() if theirs in self.columns and ours not in self.columns]

    def _adopt(self, record: dict[str, Any], part: Path, split: str | None) -> dict[str, Any]:
        """Give datasets' own column names (file_name, text) their meaning here, and the folder's split."""
        image, caption = self._mapping["image"], self._mapping["caption"]
        named = dict(record)
        value = named.get(image, named.get("file_name"))
        if isinstance(value, str) and not os.path.isabs(value) and "://" not in value:
            value = os.path.relpath(part / value, self.folder)
            first = value.split("/")[0]
            split = first if split is None and first in SPLIT_FOLDERS else split
        named[image] = value
        if caption not in named and self._mapping["captions"] not in named and "text" in named:
            named[caption] = named["text"]
        if split is not None:
            named.setdefault(self._mapping["split"], split)
        return named

    def _read_sidecars(self, part: Path, split: str | None) -> None:
        pictures = sorted(
            path for path in part.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and path.name[0] != "."
        )
        for picture in pictures:
            sidecar = picture.with_suffix(".txt")
            where = str(sidecar)
            if not sidecar.is_file():
                self.faults.append((str(picture), f"no caption: expected {sidecar.name} beside it, or a metadata.jsonl in {part}"))
                continue
            try:
                lines = [line.strip() for line in sidecar.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            except UnicodeDecodeError as error:
                self.faults.append((where, f"not UTF-8 text: {error}"))
                continue
            record: dict[str, Any] = {self._mapping["image"]: os.path.relpath(picture, self.folder), self._mapping["captions"]: lines}
            if split is not None:
                record[self._mapping["split"]] = split
            self._records.append((where, record))
        if pictures:
            self.columns += [name for name in (self._mapping["image"], self._mapping["captions"]) if name not in self.columns]

    def __iter__(self) -> Iterator[Row]:
        for where, record in self._records:
            yield _row(where, record, self._mapping)


class ArrowRows(_Rows):
    """One or more .parquet files, memory-mapped through the `datasets` library; pictures are paths or embedded {bytes, path}."""

    def __init__(self, files: list[Path], mapping: Mapping[str, str]) -> None:
        import datasets  # heavy, and needed by this door alone

        self.folder = files[0].parent
        self.faults: list[tuple[str, str]] = []
        self.header_place = ", ".join(str(file) for file in files)
        self._mapping = mapping
        datasets.disable_progress_bars()
        try:
            loaded = [datasets.Dataset.from_parquet(str(file)) for file in files]
            dataset = datasets.concatenate_datasets(loaded) if len(loaded) > 1 else loaded[0]
        except Exception as error:  # datasets and pyarrow wrap one another's errors
            raise UserError(f"{self.header_place}: cannot be read as parquet ({type(error).__name__}: {error})") from error
        self._places = [(str(file), len(part)) for file, part in zip(files, loaded, strict=True)]
        self.columns = list(dataset.column_names)
        self._table = dataset.with_format("arrow")
        self._num_rows = len(dataset)

    def _where(self, row: int) -> str:
        for name, num_rows in self._places:
            if row < num_rows:
                return f"{name} row {row + 1}"
            row -= num_rows
        raise IndexError(row)

    def __iter__(self) -> Iterator[Row]:
        names = [name for name in dict.fromkeys(self._mapping.values()) if name in self.columns]
        table = self._table.select_columns(names)
        for start in range(0, self._num_rows, 1000):
            part = table[start : min(start + 1000, self._num_rows)]
            num_bytes, paths = _split_image_column(part, self._mapping["image"])
            kept = [name for name in part.column_names if num_bytes is None or name != self._mapping["image"]]
            for offset, record in enumerate(part.select(kept).to_pylist()):
                row, embedded = start + offset, None
                if num_bytes is not None:
                    record[self._mapping["image"]] = paths[offset]
                    if size := num_bytes[offset]:
                        candidates = (record.get(self._mapping["id"]), paths[offset], f"row-{row + 1:07d}")
                        embedded = EmbeddedImage(row, next(str(name) for name in candidates if name not in (None, "")), size)
                yield _row(self._where(row), record, self._mapping, embedded)

    def image_bytes(self, row: int) -> bytes:
        """Embedded bytes of a row, read through the memory map."""
        value = self._table[row : row + 1][self._mapping["image"]][0].as_py()
        return value["bytes"] if isinstance(value, dict) else value


def _split_image_column(part: Any, name: str) -> tuple[list[int | None] | None, list[str | None]]:
    """(bytes per picture, inner path per picture) of an image column that embeds; (None, []) of one that holds paths. Copies no picture."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in part.column_names:
        return None, []
    column = part[name]
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        paths = pc.struct_field(column, "path").to_pylist() if kind.get_field_index("path") >= 0 else [None] * len(column)
        return pc.binary_length(pc.struct_field(column, "bytes")).to_pylist(), paths
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(column).to_pylist(), [None] * len(column)
    return None, []

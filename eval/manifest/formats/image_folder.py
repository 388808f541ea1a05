"""Rows out of an image folder."""

import os
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.dataset.images import HEIF_REMEDY, HEIF_SUFFIXES, picture_suffixes
from eval.errors import UserError
from eval.files import read_text
from eval.manifest.formats.text import read_csv, read_jsonl
from eval.manifest.rows import Row, RowSource, row_of

SPLIT_FOLDERS = ("train", "val", "validation", "valid", "dev", "test")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
_NO_CAPTIONS = ("readme", "license", "licence", "notice", "copying", "changelog", "authors", "citation", "credits")
"""Names of .txt files that describe the folder."""


class FolderRows(RowSource):
    """An image folder: metadata.jsonl/.csv with `file_name` and a caption (as `datasets` has it), or IMAGE.txt next to each image.

    Subfolders named train, val, validation, valid, dev or test are splits; metadata of the folder itself takes precedence over theirs.
    A sidecar .txt holds one caption a line; one whose picture is not there, or is of no known suffix, is a fault. Hidden files are skipped
    (macOS leaves ._NAME.jpg in archives).
    """

    def __init__(self, folder: Path, mapping: Mapping[str, str]) -> None:
        self.folder, self.mapping = folder, mapping
        self.faults: list[tuple[str, str]] = []
        self.header_place = str(folder)
        self._records: deque[tuple[str, dict[str, Any]]] = deque()
        self.columns: list[str] = []
        described = any((folder / name).is_file() for name in METADATA_FILES)
        parts = [folder / name for name in SPLIT_FOLDERS if (folder / name).is_dir() and not described] or [folder]
        for part in parts:
            self._read_part(part, None if part == folder else part.name)
        if not self._records and not self.faults:
            raise UserError(
                f"{folder}: no pictures with captions; expected metadata.jsonl or metadata.csv with a column file_name, "
                "or a .txt next to each picture"
            )

    def _read_part(self, part: Path, split: str | None) -> None:
        files = [part / name for name in METADATA_FILES if (part / name).is_file()]
        for file in files:
            columns, records = (read_csv if file.suffix == ".csv" else read_jsonl)(file, self.faults)
            self.columns += [name for name in columns if name not in self.columns]
            for line, record in records:
                self._records.append((f"{file}:{line}", self._adopt(record, part, split)))
        if not files:
            self._read_sidecars(part, split)
        if any(self.mapping["split"] in record for _, record in self._records) and self.mapping["split"] not in self.columns:
            self.columns.append(self.mapping["split"])
        added = {"file_name": self.mapping["image"], "text": self.mapping["caption"]}
        self.columns += [ours for theirs, ours in added.items() if theirs in self.columns and ours not in self.columns]

    def _adopt(self, record: dict[str, Any], part: Path, split: str | None) -> dict[str, Any]:
        """Map the column names of `datasets` (file_name, text) to ours, and add the folder's split."""
        image, caption = self.mapping["image"], self.mapping["caption"]
        named = dict(record)
        value = named.get(image, named.get("file_name"))
        if isinstance(value, str) and not os.path.isabs(value) and "://" not in value:
            value = os.path.relpath(part / value, self.folder)
            first = value.split("/")[0]
            split = first if split is None and first in SPLIT_FOLDERS else split
        named[image] = value
        if caption not in named and self.mapping["captions"] not in named and "text" in named:
            named[caption] = named["text"]
        if split is not None:
            named.setdefault(self.mapping["split"], split)
        return named

    def _read_sidecars(self, part: Path, split: str | None) -> None:
        files = sorted(path for path in part.rglob("*") if path.name[0] != "." and path.is_file())
        pictures = [path for path in files if path.suffix.lower() in picture_suffixes()]
        sidecars = _Sidecars(path for path in files if path.suffix.lower() == ".txt")
        for picture in pictures:
            sidecar = sidecars.of(picture)
            if sidecar is None:
                expected = picture.with_suffix(".txt").name
                self.faults.append((str(picture), f"no caption: expected {expected} next to it, or a metadata.jsonl in {part}"))
                continue
            try:
                lines = [line.strip() for line in read_text(sidecar).split("\n") if line.strip()]
            except UnicodeDecodeError as error:
                self.faults.append((str(sidecar), f"not UTF-8 text: {error}"))
                continue
            record: dict[str, Any] = {self.mapping["image"]: os.path.relpath(picture, self.folder), self.mapping["captions"]: lines}
            if split is not None:
                record[self.mapping["split"]] = split
            self._records.append((str(sidecar), record))
        self.faults += sidecars.unused(files, has_pictures=bool(pictures))
        if pictures:
            self.columns += [name for name in (self.mapping["image"], self.mapping["captions"]) if name not in self.columns]

    def __iter__(self) -> Iterator[Row]:
        while self._records:
            where, record = self._records.popleft()
            yield row_of(where, record, self.mapping)


class _Sidecars:
    """The .txt files of a folder, by the name of the picture they are next to."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._by_name = {str(path.with_suffix("")): path for path in paths}
        # The same name composed otherwise: a picture's as macOS writes it, and its caption's as Linux does.
        self._by_form = {unicodedata.normalize("NFC", name): path for name, path in self._by_name.items()}
        self._used: set[Path] = set()

    def of(self, picture: Path) -> Path | None:
        """That of a picture, if there is one."""
        name = str(picture.with_suffix(""))
        found = self._by_name.get(name) or self._by_form.get(unicodedata.normalize("NFC", name))
        if found is not None:
            self._used.add(found)
        return found

    def unused(self, files: Sequence[Path], *, has_pictures: bool) -> list[tuple[str, str]]:
        """(place, what) of those that no picture took, out of all files of the folder; `has_pictures`: some picture is there."""
        left = {name: path for name, path in self._by_name.items() if path not in self._used}
        others = {str(path.with_suffix("")): path for path in files if path.suffix.lower() != ".txt"}
        faults = []
        for name, path in left.items():
            if (other := others.get(name)) is not None:
                faults.append((str(path), f"the picture of this caption, {other.name}, is not read: {_why_not_read(other)}"))
            elif has_pictures and path.stem.lower() not in _NO_CAPTIONS:
                remedy = "Put it there, or move the .txt elsewhere"
                faults.append((str(path), f"no picture of this name: expected {path.stem}.jpg or such next to it. {remedy}"))
        return faults


def _why_not_read(path: Path) -> str:
    if path.suffix.lower() in HEIF_SUFFIXES:
        return HEIF_REMEDY
    known = ", ".join(sorted(picture_suffixes()))
    return f"{f'*{path.suffix}' if path.suffix else 'a name without a suffix'} is none of {known}. Rename it by its format, or convert it"

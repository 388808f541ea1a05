"""Rows out of an image folder."""

import os
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.dataset.images import HEIF_REMEDY, HEIF_SUFFIXES, picture_suffixes
from eval.errors import UserError
from eval.files import read_text
from eval.manifest.formats.file_names import split_folders, split_of_folder
from eval.manifest.formats.text import read_csv, read_jsonl
from eval.manifest.names import called
from eval.manifest.rows import Row, RowSource, row_of

_NOT_IN_A_SPLIT = "a picture without a caption, next to the split folders"
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
_NO_CAPTIONS = ("readme", "license", "licence", "notice", "copying", "changelog", "authors", "citation", "credits")
"""Names of .txt files that describe the folder."""


class FolderRows(RowSource):
    """An image folder: metadata.jsonl/.csv with `file_name` and a caption (as `datasets` has it), or IMAGE.txt next to each image.

    Subfolders named for splits are splits; captions next to them are faults, and other pictures there are left out. Metadata of the folder
    itself takes precedence over theirs. A sidecar .txt holds one caption a line; one whose picture is not there, or is of no known suffix,
    is a fault. Hidden files are skipped (macOS leaves ._NAME.jpg in archives), and links to folders are not followed.
    """

    def __init__(self, folder: Path, mapping: Mapping[str, str]) -> None:
        self.folder, self.mapping = folder, mapping
        self.faults: list[tuple[str, str]] = []
        self.header_place = str(folder)
        self._records: deque[tuple[str, dict[str, Any]]] = deque()
        self.columns: list[str] = []
        self.left_out: list[tuple[str, str]] = []
        self.not_read: list[str] = []
        self._sidecars: list[_Sidecars] = []
        splits = split_folders(folder)
        if _metadata_of(folder):
            self._read_part(folder, None)
            self.not_read += [str(file.relative_to(folder)) for part in splits for file in _metadata_of(part)]
        else:
            for part, split in splits.items() or [(folder, None)]:
                self._read_part(part, split)
            if splits:
                self._look_next_to(splits)
        has_pictures = any(sidecars.files.pictures for sidecars in self._sidecars)
        self.faults += [fault for sidecars in self._sidecars for fault in sidecars.unused(has_pictures=has_pictures)]
        if not self._records and not self.faults:
            raise UserError(
                f"{folder}: no pictures with captions; expected metadata.jsonl or metadata.csv with a column file_name, "
                "or a .txt next to each picture"
            )

    def _read_part(self, part: Path, split: str | None) -> None:
        files = _metadata_of(part)
        for file in files:
            columns, records = (read_csv if file.suffix == ".csv" else read_jsonl)(file, self.faults)
            self.columns += [name for name in columns if name not in self.columns]
            for line, record in records:
                self._records.append((f"{file}:{line}", self._adopt(record, part, split)))
        if not files:
            self._read_sidecars(part, split)
        if any(self.mapping["split"] in record for _, record in self._records) and self.mapping["split"] not in self.columns:
            self.columns.append(self.mapping["split"])
        added = {"file_name": "image"} if self.mapping["image"] == "image" and files else {}
        added |= {"text": "caption"} if self._are_captions_ours and files else {}
        self.columns += [ours for theirs, ours in added.items() if theirs in self.columns and ours not in self.columns]

    @property
    def _are_captions_ours(self) -> bool:
        """Whether no column of captions was asked for."""
        return (self.mapping["caption"], self.mapping["captions"]) == ("caption", "captions")

    def _adopt(self, record: dict[str, Any], part: Path, split: str | None) -> dict[str, Any]:
        """Map the column names of `datasets` (file_name, text) to ours, and add the folder's split."""
        image, caption = self.mapping["image"], self.mapping["caption"]
        named = dict(record)
        value = named.get(image, named.get("file_name") if image == "image" else None)
        if isinstance(value, str) and value.strip() and not os.path.isabs(value) and "://" not in value:
            value = os.path.relpath(part / value, self.folder)
            first = value.split("/")[0]
            split = split_of_folder(first) if split is None and first != value else split
        named[image] = value
        if self._are_captions_ours and caption not in named and self.mapping["captions"] not in named and "text" in named:
            named[caption] = named["text"]
        if split is not None:
            named.setdefault(self.mapping["split"], split)
        return named

    def _read_sidecars(self, part: Path, split: str | None) -> None:
        files = _Files.below(part)
        self._sidecars.append(sidecars := _Sidecars(files))
        self.not_read += [f"{path.relative_to(self.folder)} (a linked folder)" for path in files.linked]
        have_captions = any(map(sidecars.of, files.pictures))
        if files.pictures and not have_captions:
            remedy = "write each one's captions into a .txt of its name next to it, or give the table that has them as the data"
            what = f"no caption for any of its {len(files.pictures):,} pictures: {remedy}, and this folder as {called('image_root')}"
            self.faults.append((str(part), what))
        for picture in files.pictures if have_captions else ():
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
        if files.pictures:
            self.columns += [name for name in (self.mapping["image"], self.mapping["captions"]) if name not in self.columns]

    def _look_next_to(self, splits: Mapping[Path, str]) -> None:
        """Name the folders with captions that are next to the split folders, and count the pictures without any."""
        names = ", ".join(part.name for part in splits)
        paths = sorted(path for path in self.folder.iterdir() if path.name[0] != "." and path not in splits)
        folders = [path for path in paths if path.is_dir()]
        self.not_read += [f"{path.name} (a linked folder)" for path in folders if path.is_symlink()]
        others = {path: _Files.below(path) for path in folders if not path.is_symlink()}
        for place, files in {self.folder: _Files([path for path in paths if path.is_file()]), **others}.items():
            sidecars = _Sidecars(files)
            captioned = [picture for picture in files.pictures if sidecars.of(picture)]
            self.left_out += [(str(picture), _NOT_IN_A_SPLIT) for picture in files.pictures if not sidecars.of(picture)]
            self.not_read += [str(path.relative_to(self.folder)) + " (a linked folder)" for path in files.linked]
            if captioned or any(path.name in METADATA_FILES for path in files.paths):
                what = f"pictures with captions next to the split folders {names}; move them into one of these, or elsewhere"
                self.faults.append((str(captioned[0] if captioned else place), what))

    def __iter__(self) -> Iterator[Row]:
        while self._records:
            where, record = self._records.popleft()
            yield row_of(where, record, self.mapping)


def _metadata_of(folder: Path) -> list[Path]:
    return [folder / name for name in METADATA_FILES if (folder / name).is_file()]


@dataclass(frozen=True)
class _Files:
    """Files that are not hidden, sorted, and links to folders, which are not followed."""

    paths: Sequence[Path]
    linked: Sequence[Path] = ()

    @classmethod
    def below(cls, folder: Path) -> "_Files":
        """Those of a folder and of the folders in it."""
        paths: list[Path] = []
        linked: list[Path] = []
        for parent, folders, names in os.walk(folder):
            linked += [path for name in folders if (path := Path(parent, name)).is_symlink()]
            paths += [path for name in names if name[0] != "." and (path := Path(parent, name)).is_file()]
        return cls(sorted(paths), sorted(linked))

    @cached_property
    def pictures(self) -> list[Path]:
        return [path for path in self.paths if path.suffix.lower() in picture_suffixes()]


class _Sidecars:
    """The .txt files of a folder, by the name of the picture they are next to."""

    def __init__(self, files: _Files) -> None:
        self.files = files
        self._by_name: dict[str, Path] = {}
        self._twice: list[tuple[str, str]] = []
        for path in files.paths:
            if path.suffix.lower() == ".txt" and (first := self._by_name.setdefault(str(path.with_suffix("")), path)) != path:
                self._twice.append((str(path), f"{first.name} is next to it, for the same picture: join them"))
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

    def unused(self, *, has_pictures: bool) -> list[tuple[str, str]]:
        """(place, what) of those that no picture took; `has_pictures`: some picture is in the image folder."""
        left = {name: path for name, path in self._by_name.items() if path not in self._used}
        others = {str(path.with_suffix("")): path for path in self.files.paths if path.suffix.lower() != ".txt"}
        faults = list(self._twice)
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

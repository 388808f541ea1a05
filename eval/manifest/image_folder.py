"""Rows out of an image folder."""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.manifest.rows import Row, RowSource, row_of
from eval.manifest.text import read_csv, read_jsonl

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
SPLIT_FOLDERS = ("train", "val", "validation", "valid", "dev", "test")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")


class FolderRows(RowSource):
    """An image folder: metadata.jsonl/.csv with `file_name` and a caption (as `datasets` has it), or IMAGE.txt next to each image.

    Subfolders named train, val, validation, valid, dev or test are splits; metadata of the folder itself takes precedence over theirs.
    A sidecar .txt holds one caption a line. Hidden files are skipped (macOS leaves ._NAME.jpg in archives).
    """

    def __init__(self, folder: Path, mapping: Mapping[str, str]) -> None:
        self.folder, self._mapping = folder, mapping
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
        if any(self._mapping["split"] in record for _, record in self._records) and self._mapping["split"] not in self.columns:
            self.columns.append(self._mapping["split"])
        added = {"file_name": self._mapping["image"], "text": self._mapping["caption"]}
        self.columns += [ours for theirs, ours in added.items() if theirs in self.columns and ours not in self.columns]

    def _adopt(self, record: dict[str, Any], part: Path, split: str | None) -> dict[str, Any]:
        """Map the column names of `datasets` (file_name, text) to ours, and add the folder's split."""
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
                self.faults.append((str(picture), f"no caption: expected {sidecar.name} next to it, or a metadata.jsonl in {part}"))
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
        while self._records:
            where, record = self._records.popleft()
            yield row_of(where, record, self._mapping)

"""Rows of a manifest before any check, each with its place (file and line, or row), and the base class of what reads them."""

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EmbeddedImage:
    """Where embedded bytes are: the row of the Arrow table; `key` names the image (its id, its inner path, or its row)."""

    row: int
    key: str
    num_bytes: int


@dataclass(frozen=True)
class Row:
    """One row as it is in the manifest; nothing is checked yet."""

    where: str
    image: Any
    embedded: EmbeddedImage | None
    captions: Any
    id: Any
    split: Any
    group: Any
    record: Mapping[str, Any]


class RowSource(ABC):
    """An opened manifest.

    Attributes:
        folder: that image paths are relative to.
        columns: the manifest's own names.
        header_place: where the columns are named, for messages.
        faults: (place, what) of rows that could not be parsed.
    """

    folder: Path
    columns: list[str]
    header_place: str
    faults: list[tuple[str, str]]

    @abstractmethod
    def __iter__(self) -> Iterator[Row]:
        """Its rows; they can be taken once."""

    def has_usable_columns(self, mapping: Mapping[str, str]) -> bool:
        """True if an image and a caption column are there, so that rows can be checked."""
        return mapping["image"] in self.columns and (mapping["caption"] in self.columns or mapping["captions"] in self.columns)

    @property
    def stamp(self) -> tuple[int, int]:
        """(0, a number that changes when the files with the embedded bytes do); (0, 0) where that is not known."""
        return 0, 0

    def image_bytes(self, row: int) -> bytes:
        """Embedded bytes of a row; a text manifest has none."""
        raise TypeError("this manifest holds paths, not bytes")


def row_of(where: str, record: Mapping[str, Any], mapping: Mapping[str, str], embedded: EmbeddedImage | None = None) -> Row:
    """The row of a record, by the names of its columns."""
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


def as_list(value: Any) -> list[Any]:
    """What a cell of texts holds: a list, a list written into text, one text, or nothing (null and the empty cell)."""
    if isinstance(value, str):
        value = _parse_list(value) if value.startswith("[") else value
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def is_unicode(text: str) -> bool:
    """False for text with half a character (a lone surrogate): it comes from bytes that were not UTF-8, and cannot be written."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

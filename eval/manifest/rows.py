"""What every reader of a manifest gives: rows as they are there, each with the place it came from, and their source."""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class EmbeddedImage:
    """Where embedded bytes lie: the row of the Arrow table; `key` is what names the picture (its id, its inner path, or its row)."""

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


class Rows:
    """What all row sources share."""

    columns: list[str]

    def has_usable_columns(self, mapping: Mapping[str, str]) -> bool:
        """True if an image and a caption column are there."""
        return mapping["image"] in self.columns and (mapping["caption"] in self.columns or mapping["captions"] in self.columns)

    def image_bytes(self, row: int) -> bytes:
        """Text manifests embed nothing."""
        raise TypeError("this manifest holds paths, not bytes")


def row_of(where: str, record: Mapping[str, Any], mapping: Mapping[str, str], embedded: EmbeddedImage | None = None) -> Row:
    """The row a record of a manifest is, by the names of its columns."""
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
    """False for text with half a character (a lone surrogate): it comes from bytes that were no UTF-8, and can be written nowhere."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

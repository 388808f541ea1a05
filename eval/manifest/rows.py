"""Rows of a manifest before any check, each with its place (file and line, or row), and the base class of what reads them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from eval.manifest.formats.lists import parsed_list


@dataclass(frozen=True)
class EmbeddedImage:
    """Where embedded bytes are: the row of the Arrow table; `key` names the image (its id, its inner path, or its row)."""

    row: int
    key: str
    num_bytes: int


class Place(NamedTuple):
    """Where a row is: "m.jsonl:" and its line, or "m.parquet row " and its number. The text is made for messages alone."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}{self.number}"


@dataclass(slots=True)
class Row:
    """One row as it is in the manifest; nothing is checked yet."""

    place: Place | str
    image: Any
    embedded: EmbeddedImage | None
    captions: Any
    id: Any
    split: Any
    group: Any
    record: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return str(self.place)


@dataclass(frozen=True)
class RowColumns:
    """All rows of a manifest, a column at a time (eval/manifest/formats/columnar.py).

    Attributes:
        columns: by the manifest's own names; one that no row has is not there.
        names, name_R, number_R: the place of each row: the name at its number among `names`, and its line or row, int64.
    """

    columns: Mapping[str, pa.ChunkedArray]
    names: list[str]
    name_R: np.ndarray
    number_R: np.ndarray


class RowSource(ABC):
    """An opened manifest.

    Attributes:
        folder: that image paths are relative to.
        columns: the manifest's own names.
        header_place: where the columns are named, for messages.
        faults: (place, what) of rows that could not be parsed; some only when all rows are taken.
        left_out: (place, why) of rows that hold no pair and are no fault, such as failed downloads; whole when all rows are taken.
        not_read: files and folders of the source that are not read, each a name with why in brackets where that is not plain.
        mapping: our column -> the manifest's own name for it; can be set until the rows are taken.
        is_one_set: whether rows of all splits are one set, in which embedded pictures of one name are told apart; can be set likewise.
    """

    folder: Path
    columns: list[str]
    mapping: Mapping[str, str]
    is_one_set: bool = False
    header_place: str
    faults: list[tuple[str, str]]
    left_out: Sequence[tuple[str, str]] = ()
    not_read: Sequence[str] = ()

    @abstractmethod
    def __iter__(self) -> Iterator[Row]:
        """Its rows; they can be taken once."""

    def as_columns(self) -> RowColumns | None:
        """All rows as columns; None where that is not known to be the same as taking them one by one. They can still be taken."""
        return None

    def drop(self) -> None:  # noqa: B027  # most hold nothing
        """Let go what is held of rows that are not taken."""

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


def row_of(place: Place | str, record: Mapping[str, Any], mapping: Mapping[str, str], embedded: EmbeddedImage | None = None) -> Row:
    """The row of a record, by the names of its columns."""
    get = record.get
    captions = parsed_list(get(mapping["captions"]))
    if captions is None:
        captions = parsed_list(get(mapping["caption"]), quoted=True)
    return Row(place, get(mapping["image"]), embedded, captions, get(mapping["id"]), get(mapping["split"]), get(mapping["group"]), record)


def is_unicode(text: str) -> bool:
    """False for text with half a character (a lone surrogate): it comes from bytes that were not UTF-8, and cannot be written."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Rows out of webdataset shards: .tar files of KEY.jpg next to KEY.txt or KEY.json. They are indexed once and read in place.

Nothing is unpacked: a picture is (shard, offset, size). A key ends at the first dot of a name, as webdataset has it.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.atomic import is_desktop_file
from eval.dataset.images import picture_suffixes
from eval.files import CONFIG_BYTES, MB, PICTURE_BYTES, files_stamp, open_archive, read_range
from eval.manifest.formats.text import parse_json
from eval.manifest.rows import EmbeddedImage, Row, RowSource, is_unicode, row_of

TEXT_FIELDS = ("txt", "text", "caption")
JSON_FIELDS = ("json", "jsn")
_FIELDS = ("image", "json", *TEXT_FIELDS)
_PARTS = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_COLUMNS_FROM = 100  # samples whose JSON names the columns


@dataclass
class _Shard:
    """One indexed shard. Shape letters: N samples, F fields."""

    path: Path
    split: str | None
    keys: Any
    """Arrow array of strings, N."""
    ranges_NF2: np.ndarray
    """int64: offset and size of each field; size -1 where there is none."""


class ShardRows(RowSource):
    """The rows of one or more shards, in the order of the shards and of the pictures within."""

    def __init__(self, shards: Sequence[tuple[Path, str | None]], mapping: Mapping[str, str]) -> None:
        """shards: path, and the split that its name says."""
        paths = [path for path, _ in shards]
        self.folder = Path(os.path.commonpath([path.parent for path in paths]))
        self.faults: list[tuple[str, str]] = []
        self.header_place = str(paths[0]) if len(paths) == 1 else f"{self.folder}/*.tar"
        self.left_out: list[tuple[str, str]] = []
        self._shards = [_index(path, split, self) for path, split in shards]
        self._starts = np.cumsum([0, *(len(shard.keys) for shard in self._shards)])
        self._image_ranges = [np.ascontiguousarray(shard.ranges_NF2[:, 0]) for shard in self._shards]
        self._repeated = _repeated_keys(self._shards)
        self.mapping, self.columns = mapping, self._find_columns()

    def __iter__(self) -> Iterator[Row]:
        for number, shard in enumerate(self._shards):
            if not len(shard.keys):
                continue
            with open_archive(shard.path) as file:
                for sample, key in enumerate(shard.keys.to_pylist()):
                    place = f"{shard.path}: {key}"
                    try:
                        record = _record(file, shard.ranges_NF2[sample])
                    except (ValueError, RecursionError) as error:
                        self.faults.append((place, str(error)))
                        continue
                    record.setdefault("key", key)
                    if shard.split is not None and record.get("split") in (None, ""):
                        record["split"] = shard.split
                    name = f"{self._name(shard)}/{key}" if key in self._repeated else key
                    size = int(shard.ranges_NF2[sample, 0, 1])
                    embedded = EmbeddedImage(int(self._starts[number]) + sample, name, size) if size else None
                    yield row_of(place, record, self.mapping, embedded)
            shard.keys, shard.ranges_NF2 = shard.keys[:0], shard.ranges_NF2[:0]

    def _name(self, shard: _Shard) -> str:
        """A shard's path within the folder, without its suffix."""
        return os.path.relpath(shard.path.with_suffix(""), self.folder)

    def _find_columns(self) -> list[str]:
        """Names of the fields, and the keys that the JSON of the first samples has."""
        columns = dict.fromkeys(["image", "key", *(["split"] if any(shard.split for shard in self._shards) else [])])
        for shard in self._shards:
            is_there_NF = shard.ranges_NF2[:, :, 1] >= 0
            columns |= {name: None for number, name in enumerate(_FIELDS) if name != "json" and is_there_NF[:, number].any()}
        if not any(len(shard.keys) for shard in self._shards):
            columns["caption"] = None
        first = next((shard for shard in self._shards if len(shard.keys)), None)
        if first is not None:
            with open_archive(first.path) as file:
                for ranges_F2 in first.ranges_NF2[:_COLUMNS_FROM]:
                    try:
                        columns |= dict.fromkeys(_record(file, ranges_F2))
                    except (ValueError, RecursionError):
                        continue  # named when its row is taken
        if columns.keys() & set(TEXT_FIELDS):
            columns["caption"] = None
        return list(columns)

    @cached_property
    def stamp(self) -> tuple[int, int]:
        """As `RowSource`, of the shards."""
        return 0, files_stamp(shard.path for shard in self._shards)

    def image_bytes(self, row: int) -> bytes:
        """The bytes of a picture; the shard is opened for it, so that processes that were forked share nothing.

        Raises:
            FileError, OSError: the shard is not there any more, or was cut.
        """
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        offset, size = self._image_ranges[number][row - int(self._starts[number])].tolist()
        return read_range(self._shards[number].path, offset, size)


def _record(file: BinaryIO, ranges_F2: np.ndarray) -> dict[str, Any]:
    """What the fields of a sample that are text hold: the keys of its JSON, the texts by their suffix, and `caption`.

    Raises:
        ValueError, RecursionError: one is too large, no UTF-8, or no JSON object; the message names it.
    """
    found: dict[str, Any] = {}
    texts = []
    for name, (offset, size) in zip(_FIELDS[1:], ranges_F2[1:].tolist(), strict=True):
        if size < 0:
            continue
        if size > CONFIG_BYTES:
            raise ValueError(f".{name}: {size:,} bytes, more than the {CONFIG_BYTES:,} allowed")
        raw = os.pread(file.fileno(), size, offset)
        try:
            value = parse_json(raw.removeprefix(b"\xef\xbb\xbf")) if name == "json" else raw.decode("utf-8-sig").strip()
        except (ValueError, RecursionError) as error:
            raise ValueError(f".{name}: not {'JSON' if name == 'json' else 'UTF-8 text'}: {error}") from error
        if name != "json":
            found[name] = value
            texts.append(value)
        elif isinstance(value, dict):
            found = value
        else:
            raise ValueError(f".json: expected an object, found {type(value).__name__}")
    if texts:
        found["caption"] = texts[0] if len(texts) == 1 else texts
    return found


def _repeated_keys(shards: list[_Shard]) -> frozenset[str]:
    """The keys that more than one shard has."""
    if len(shards) < 2:
        return frozenset()
    counts = pc.value_counts(pa.chunked_array([shard.keys for shard in shards], pa.large_string()))
    return frozenset(counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist())


class _Headers:
    """A shard for tarfile, which reads headers alone; one that claims more than a header's size is refused."""

    name = ""
    mode = "rb"

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.seek, self._read = file.tell, file.seek, file.read

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= MB:
            raise tarfile.ReadError(f"a header of {num_bytes:,} bytes")
        return self._read(num_bytes)


@dataclass
class _Indexer:
    """The samples of one shard while its headers are read."""

    shard: Path
    rows: ShardRows
    samples: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """Key -> offset and size of each field, by its suffix."""

    def add(self, member: tarfile.TarInfo) -> None:
        """Take in a member; what cannot be used goes to the faults, or to what is left out."""
        name, place = member.name, f"{self.shard}: {member.name!r:.200}"
        base = os.path.basename(name)
        if member.isdir() or is_desktop_file(base):
            return
        what = _member_fault(member)
        parts = _PARTS.fullmatch(name)
        if what is not None:
            self.rows.faults.append((place, what))
        elif parts is None:
            self.rows.left_out.append((place, "no file of a sample: KEY.SUFFIX"))
        else:
            fields = self.samples.setdefault(parts[1].removeprefix("./"), {})
            if parts[2].lower() in fields:
                self.rows.faults.append((place, "is there twice; names are unique in a shard"))
            fields.setdefault(parts[2].lower(), (member.offset_data, member.size))

    def shard_of(self, split: str | None) -> _Shard:
        """The samples that have one picture; the others are faults, or left out where they have no text either."""
        keys, ranges = [], []
        for key, fields in self.samples.items():
            pictures = [name for name in fields if f".{name}" in picture_suffixes()]
            what = None
            if not pictures and not fields.keys() & {*TEXT_FIELDS, *JSON_FIELDS}:
                self.rows.left_out.append((f"{self.shard}: {key}", f"neither a picture nor a text: {list(fields)[:8]}"))
                continue
            if len(pictures) != 1:
                what = f"expected one picture, found {pictures or list(fields)[:8]}; a key ends at the first dot of a name"
            elif fields[pictures[0]][1] > PICTURE_BYTES:
                what = f"a picture of {fields[pictures[0]][1]:,} bytes, more than the {PICTURE_BYTES:,} allowed"
            if what is not None:
                self.rows.faults.append((f"{self.shard}: {key}", what))
                continue
            names = [pictures, JSON_FIELDS, *([name] for name in TEXT_FIELDS)]
            keys.append(key)
            ranges.append([next((fields[name] for name in choices if name in fields), (-1, -1)) for choices in names])
        ranges_NF2 = np.array(ranges, dtype=np.int64).reshape(len(keys), len(_FIELDS), 2)
        return _Shard(self.shard, split, pa.array(keys, pa.large_string()), ranges_NF2)


def _member_fault(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member of a shard, if anything."""
    if not is_unicode(member.name):
        return "its name is not UTF-8 text"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the shard; names are relative, without .."
    if not member.isreg() or member.issparse():
        return "is a link, a device or a sparse file; a shard holds plain files alone"
    return None


def _index(path: Path, split: str | None, rows: ShardRows) -> _Shard:
    """Read the headers of a shard; what is wrong with it goes to the faults of `rows`."""
    indexer = _Indexer(path, rows)
    with open_archive(path) as file:
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:", encoding="utf-8") as tar:  # type: ignore[call-overload]
                for member in _members(tar):
                    indexer.add(member)
                what = _end_fault(file, tar.offset)
        except Exception as error:  # tarfile raises many on damaged headers
            file.seek(0)
            is_gzip = file.read(2) == b"\x1f\x8b"
            what = f"cannot be read as a .tar: {'it is compressed by gzip; decompress it with gunzip' if is_gzip else error}"
    if what is not None:
        rows.faults.append((str(path), what))
    return indexer.shard_of(split)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, none of which is held.

    Raises:
        tarfile.ReadError: one claims fewer than no bytes, which would lead back to it for ever.
    """
    while (member := tar.next()) is not None:
        if member.size < 0 or tar.offset <= member.offset:
            raise tarfile.ReadError(f"{member.name!r:.200} claims {member.size:,} bytes")
        yield member
        tar.members = []  # type: ignore[attr-defined]


def _end_fault(file: BinaryIO, end: int) -> str | None:
    """What is wrong with an archive whose last header ends before `end`: there should be zeros alone."""
    file.seek(end)
    first = file.read(tarfile.BLOCKSIZE)
    if len(first) < tarfile.BLOCKSIZE:
        return "has no end: it was cut off, or its writer was not closed; copy or write it again"
    while first:
        if first.count(0) < len(first):
            return f"damaged, or another archive appended, at byte {end:,}: nothing after it was read. Write it again"
        first = file.read(MB)
    return None

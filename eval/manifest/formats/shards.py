"""Rows out of webdataset shards: .tar files of KEY.jpg next to KEY.txt or KEY.json. They are indexed once (shard_index.py, index_cache.py)
and read in place.

Nothing is unpacked: a picture is (shard, offset, size). A key ends at the first dot of a name, as webdataset has it.
"""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.files import CONFIG_BYTES, files_stamp, open_archive, read_range
from eval.manifest.formats.index_cache import cached_index
from eval.manifest.formats.shard_index import FIELDS, TEXT_FIELDS
from eval.manifest.formats.text import parse_json
from eval.manifest.rows import EmbeddedImage, Row, RowSource, row_of

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
        self._shards = self._index(shards)
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

    def _index(self, shards: Sequence[tuple[Path, str | None]]) -> list[_Shard]:
        """The shards indexed, in an order of the process's own: of those that start together one finds in the cache what another did."""
        order = random.Random(os.getpid()).sample(range(len(shards)), len(shards))
        indices = {number: cached_index(shards[number][0]) for number in order}
        for number, (path, _) in enumerate(shards):
            self.faults += [(f"{path}: {where}" if where else str(path), what) for where, what in indices[number].faults]
            self.left_out += [(f"{path}: {where}", why) for where, why in indices[number].left_out]
        return [_Shard(path, split, indices[number].keys, indices[number].ranges_NF2) for number, (path, split) in enumerate(shards)]

    def _name(self, shard: _Shard) -> str:
        """A shard's path within the folder, without its suffix."""
        return os.path.relpath(shard.path.with_suffix(""), self.folder)

    def _find_columns(self) -> list[str]:
        """Names of the fields, and the keys that the JSON of the first samples has."""
        columns = dict.fromkeys(["image", "key", *(["split"] if any(shard.split for shard in self._shards) else [])])
        for shard in self._shards:
            is_there_NF = shard.ranges_NF2[:, :, 1] >= 0
            columns |= {name: None for number, name in enumerate(FIELDS) if name != "json" and is_there_NF[:, number].any()}
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
    for name, (offset, size) in zip(FIELDS[1:], ranges_F2[1:].tolist(), strict=True):
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

"""What img2dataset writes: 00000.parquet with the pictures, or a record of each download next to 00000/ or 00000.tar.

A download that failed is no fault of the data: it is left out, and counted by name.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval.dataset.images import picture_suffixes
from eval.errors import UserError
from eval.files import CONFIG_BYTES, read_bytes, require_plain
from eval.manifest.formats.encoding import values_of
from eval.manifest.formats.shards import ShardRows
from eval.manifest.formats.text import parse_json
from eval.manifest.rows import Row, RowSource, row_of

PICTURE_COLUMNS = ("jpg", "png", "webp")
_STATS = "_stats.json"
STATUS = ("status", "error_message")


def picture_column(columns: Sequence[str]) -> str | None:
    """The column of the pictures in img2dataset's parquet, or in webdataset shards that `datasets` read; None for any other table."""
    found = [name for name in PICTURE_COLUMNS if name in columns]
    return found[0] if len(found) == 1 and ("__key__" in columns or {"key", "status"} <= set(columns)) else None


def why_left_out(status: Any, message: Any) -> str | None:
    """Why a picture was not downloaded; None if it was."""
    return None if status == "success" else f"{status}: {message}"[:200] if message else str(status)


def download_folders(folder: Path) -> list[Path]:
    """The folders 00000/, 00001/, ... of img2dataset's files format, where one has 00000.parquet or 00000_stats.json next to it.

    The last one of a download that was interrupted has neither.
    """
    folders = sorted(path for path in folder.iterdir() if path.name.isdigit() and path.is_dir())
    is_download = any(_record_of(path).is_file() or path.with_name(f"{path.name}{_STATS}").is_file() for path in folders)
    return folders if is_download else []


def is_download_record(path: Path) -> bool:
    """Whether a file is img2dataset's record of the downloads that lie next to it: 00000.parquet, 00000_stats.json."""
    if path.name.endswith(_STATS):
        return path.name.removesuffix(_STATS).isdigit()
    return path.suffix == ".parquet" and path.stem.isdigit() and (path.with_suffix("").is_dir() or path.with_suffix(".tar").is_file())


def failed_downloads(shards: Sequence[Path]) -> list[tuple[str, str]]:
    """(place, why) of every picture that was not downloaded, by the records next to folders or .tar files, where there are any.

    Raises:
        UserError: a record cannot be read.
    """
    found = []
    for shard in shards:
        for row, (_, status, message) in enumerate(_record(shard), 1):
            if why := why_left_out(status, message):
                found.append((f"{_record_of(shard)} row {row}", why))
    return found


def _lost_downloads(shard: Path, is_there: Callable[[str], bool]) -> list[tuple[str, str]]:
    """(place, why) of every picture of a shard that was downloaded, by its record, and is not there; `is_there`: by its key."""
    return [
        (f"{_record_of(shard)} row {row}", "downloaded, but not there any more")
        for row, (key, *outcome) in enumerate(_record(shard), 1)
        if why_left_out(*outcome) is None and not is_there(str(key))
    ]


def _record(shard: Path) -> list[tuple[Any, Any, Any]]:
    """(key, status, error message) of each picture, by the record next to a folder or .tar file; [] where there is none.

    Raises:
        UserError: it cannot be read.
    """
    file = _record_of(shard)
    if not file.exists():
        return []
    try:
        require_plain(file)
        if not {"key", *STATUS} <= set(pq.read_schema(file).names):
            return []
        table = pq.read_table(file, columns=["key", *STATUS])
    except Exception as error:  # pyarrow has many of its own
        raise UserError(f"{file}: img2dataset's record of downloads cannot be read ({error}); copy it again, or delete it") from error
    return list(zip(*(values_of(table[name]) for name in ("key", *STATUS)), strict=True))


def _record_of(shard: Path) -> Path:
    return shard.with_suffix(".parquet")


class DownloadedShards(ShardRows):
    """Shards, next to which records of downloads may be."""

    def __init__(self, shards: Sequence[tuple[Path, str | None]], mapping: Mapping[str, str]) -> None:
        """As of `ShardRows`."""
        super().__init__(shards, mapping)
        self._paths = [path for path, _ in shards]
        self._named = {place for place, _ in self.left_out}
        self.left_out += failed_downloads(self._paths)

    def __iter__(self) -> Iterator[Row]:
        shards = iter(self._paths)
        shard, keys = next(shards), set[str]()
        for row in super().__iter__():
            while not row.where.startswith(f"{shard}: "):
                self._count_lost(shard, keys)
                shard, keys = next(shards), set()
            keys.add(row.where.removeprefix(f"{shard}: "))
            yield row
        for left in (shard, *shards):
            self._count_lost(left, keys if left == shard else set())

    def _count_lost(self, shard: Path, keys: set[str]) -> None:
        self._named |= {place for place, _ in self.faults}
        if str(shard) not in self._named:  # one that was cut off is a fault as a whole
            self.left_out += _lost_downloads(shard, lambda key: key in keys or f"{shard}: {key}" in self._named)


class DownloadedFiles(RowSource):
    """img2dataset's files format: 00000/000000000.jpg with its caption in .txt and the rest in .json."""

    def __init__(self, folder: Path, shards: Sequence[Path], mapping: Mapping[str, str]) -> None:
        """shards: the folders of `download_folders`."""
        self.folder, self.header_place = folder, str(folder)
        self.faults: list[tuple[str, str]] = []
        self.left_out: list[tuple[str, str]] = failed_downloads(shards)
        self._shards = shards
        first = next((_read_sample(picture)[0] for picture in self._pictures()), {})
        self.mapping = mapping
        self.columns = list(dict.fromkeys(["image", "caption", *first]))

    def _pictures(self, *, find_lost: bool = False) -> Iterator[Path]:
        """In the order of the shards; `find_lost`: captions without a picture are faults, and records without one are left out."""
        for shard in self._shards:
            files = sorted(path for path in shard.iterdir() if path.name[0] != ".")
            pictures = [path for path in files if path.suffix.lower() in picture_suffixes()]
            yield from pictures
            if find_lost:
                stems = {path.stem for path in pictures}
                alone = {path.stem: path for path in files if path.suffix.lower() in (".txt", ".json") and path.stem not in stems}
                what = "no picture of this name next to it: download it again, or move this elsewhere"
                self.faults += [(str(path), what) for path in alone.values()]
                self.left_out += _lost_downloads(shard, {*stems, *alone}.__contains__)

    def __iter__(self) -> Iterator[Row]:
        for picture in self._pictures(find_lost=True):
            record, what = _read_sample(picture)
            if what is not None:
                self.faults.append(what)
                continue
            yield row_of(str(picture), record | {"image": os.path.relpath(picture, self.folder)}, self.mapping)


def _read_sample(picture: Path) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """(what the .json of a picture holds, with the caption of its .txt; None, or the place and what is wrong)."""
    record: dict[str, Any] = {}
    for suffix in (".json", ".txt"):
        file = picture.with_suffix(suffix)
        try:
            raw = read_bytes(file, CONFIG_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            return record, (str(file), f"cannot be read: {error}")
        try:
            if suffix == ".txt":
                record["caption"] = raw.decode("utf-8-sig").strip()
                continue
            value = parse_json(raw)
        except (ValueError, RecursionError) as error:
            return record, (str(file), f"not {'JSON' if suffix == '.json' else 'UTF-8 text'}: {error}")
        if not isinstance(value, dict):
            return record, (str(file), f"expected a JSON object, found {type(value).__name__}")
        record = value
    return record, None

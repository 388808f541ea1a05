"""What img2dataset writes: 00000.parquet with the pictures, or a record of each download next to 00000/ or 00000.tar.

A download that failed is no fault of the data: it is left out, and counted by name.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval.dataset.images import picture_suffixes
from eval.errors import UserError
from eval.files import CONFIG_BYTES, read_bytes, require_plain
from eval.manifest.formats.arrow_text import values_of
from eval.manifest.formats.text import parse_json
from eval.manifest.rows import Row, RowSource, row_of

PICTURE_COLUMNS = ("jpg", "png", "webp")
STATUS = ("status", "error_message")


def picture_column(columns: Sequence[str]) -> str | None:
    """The column of the pictures in img2dataset's parquet, or in webdataset shards that `datasets` read; None for any other table."""
    found = [name for name in PICTURE_COLUMNS if name in columns]
    return found[0] if len(found) == 1 and ("__key__" in columns or {"key", "status"} <= set(columns)) else None


def why_left_out(status: Any, message: Any) -> str | None:
    """Why a picture was not downloaded; None if it was."""
    return None if status == "success" else f"{status}: {message}"[:200] if message else str(status)


def download_folders(folder: Path) -> list[Path]:
    """The folders 00000/, 00001/, ... of img2dataset's files format, each with 00000.parquet or 00000_stats.json next to it."""
    folders = sorted(path for path in folder.iterdir() if path.name.isdigit() and path.is_dir())
    return [path for path in folders if _record_of(path).is_file() or path.with_name(f"{path.name}_stats.json").is_file()]


def is_download_record(path: Path) -> bool:
    """Whether a .parquet is the record of the downloads that lie next to it."""
    return path.stem.isdigit() and (path.with_suffix("").is_dir() or path.with_suffix(".tar").is_file())


def failed_downloads(shards: Sequence[Path]) -> list[tuple[str, str]]:
    """(place, why) of every picture that was not downloaded, by the records next to folders or .tar files, where there are any.

    Raises:
        UserError: a record cannot be read.
    """
    found = []
    for file in map(_record_of, shards):
        if not file.exists():
            continue
        try:
            require_plain(file)
            if not {"key", *STATUS} <= set(pq.read_schema(file).names):
                continue
            table = pq.read_table(file, columns=list(STATUS))
        except Exception as error:  # pyarrow has many of its own
            raise UserError(f"{file}: img2dataset's record of downloads cannot be read ({error}); copy it again, or delete it") from error
        statuses, messages = (values_of(table[name]) for name in STATUS)
        for row, (status, message) in enumerate(zip(statuses, messages, strict=True), 1):
            if why := why_left_out(status, message):
                found.append((f"{file} row {row}", why))
    return found


def _record_of(shard: Path) -> Path:
    return shard.with_suffix(".parquet")


class DownloadedFiles(RowSource):
    """img2dataset's files format: 00000/000000000.jpg with its caption in .txt and the rest in .json."""

    def __init__(self, folder: Path, shards: Sequence[Path], mapping: Mapping[str, str]) -> None:
        """shards: the folders of `download_folders`."""
        self.folder, self.header_place = folder, str(folder)
        self.faults: list[tuple[str, str]] = []
        self.left_out = failed_downloads(shards)
        self._shards = shards
        first = next((_read_sample(picture)[0] for picture in self._pictures()), {})
        self.mapping = mapping
        self.columns = list(dict.fromkeys(["image", "caption", *first]))

    def _pictures(self) -> Iterator[Path]:
        for shard in self._shards:
            yield from sorted(path for path in shard.iterdir() if path.suffix.lower() in picture_suffixes() and path.name[0] != ".")

    def __iter__(self) -> Iterator[Row]:
        for picture in self._pictures():
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

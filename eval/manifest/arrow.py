"""Rows out of Arrow tables that stay on disk, memory-mapped by the `datasets` library: a set larger than memory works.

It reads .parquet files, folders written by `datasets.save_to_disk`, and data sets on the hub. Images are paths or embedded {bytes, path};
none is decoded, or even copied, while rows are read.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from eval.errors import UserError
from eval.files import require_plain
from eval.manifest.rows import EmbeddedImage, Row, RowSource, row_of

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Part:
    """One table of a manifest: its name in messages, the table, and the split of rows that have no split column."""

    name: str
    table: Any
    split: str | None = None


class ArrowRows(RowSource):
    """The rows of one or more tables, one after another."""

    def __init__(self, parts: list[Part], mapping: Mapping[str, str], folder: Path, header_place: str) -> None:
        self.folder, self.header_place = folder, header_place
        self.faults: list[tuple[str, str]] = []
        self._mapping = mapping
        self._parts = [Part(part.name, part.table.with_format("arrow"), part.split) for part in parts]
        columns = [column for part in parts for column in part.table.column_names]
        # A split column that the configuration names and that is not there stays a fault.
        columns += ["split" for part in parts if part.split is not None and mapping["split"] == "split"]
        self.columns = list(dict.fromkeys(columns))

    def __iter__(self) -> Iterator[Row]:
        first = 0
        for part in self._parts:
            yield from self._rows_of(part, first)
            first += len(part.table)

    def _rows_of(self, part: Part, first: int) -> Iterator[Row]:
        """The rows of one table, the first of which is number `first` of all."""
        image = self._mapping["image"]
        table = part.table.select_columns([name for name in dict.fromkeys(self._mapping.values()) if name in part.table.column_names])
        classes = {name: feature for name, feature in table.features.items() if hasattr(feature, "int2str")}
        for start in range(0, len(table), _ROWS_AT_ONCE):
            batch = table[start : min(start + _ROWS_AT_ONCE, len(table))]
            num_bytes, paths = _split_image_column(batch, image)
            read = [name for name in batch.column_names if num_bytes is None or name != image]
            for offset, record in enumerate(batch.select(read).to_pylist()):
                row, embedded = start + offset, None
                for name, feature in classes.items():  # ClassLabels, which store what is missing as -1, or as null
                    record[name] = None if record[name] is None or record[name] < 0 else feature.int2str(record[name])
                record.setdefault(self._mapping["split"], part.split)
                if num_bytes is not None:
                    record[image] = paths[offset]
                    if size := num_bytes[offset]:
                        embedded = EmbeddedImage(first + row, self._key(record, paths[offset], first + row), size)
                yield row_of(f"{part.name} row {row + 1}", record, self._mapping, embedded)

    def _key(self, record: Mapping[str, Any], path: str | None, row: int) -> str:
        """What names an embedded picture: its id, its inner path, or the number of its row among all."""
        candidates = (record.get(self._mapping["id"]), path, f"row-{row + 1:07d}")
        return next(str(name) for name in candidates if name not in (None, ""))

    @cached_property
    def stamp(self) -> tuple[int, int]:
        """As `RowSource`, of the memory-mapped files."""
        files = [file["filename"] for part in self._parts for file in part.table.cache_files]
        if not files:
            return 0, 0
        stats = [os.stat(file) for file in files]
        text = repr([(found.st_size, found.st_mtime_ns, file) for file, found in zip(files, stats, strict=True)])
        return 0, int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])

    def image_bytes(self, row: int) -> bytes:
        """Embedded bytes of a row, read through the memory map."""
        for part in self._parts:
            if row < len(part.table):
                value = part.table[row : row + 1][self._mapping["image"]][0].as_py()
                return value["bytes"] if isinstance(value, dict) else value
            row -= len(part.table)
        raise IndexError(row)


def _split_image_column(batch: Any, name: str) -> tuple[list[int | None] | None, list[str | None]]:
    """(bytes per picture, inner path per picture) of an image column that embeds; (None, []) of one that holds paths. Copies no picture."""
    if name not in batch.column_names:
        return None, []
    column = batch[name]
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        paths = pc.struct_field(column, "path").to_pylist() if kind.get_field_index("path") >= 0 else [None] * len(column)
        return pc.binary_length(pc.struct_field(column, "bytes")).to_pylist(), paths
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(column).to_pylist(), [None] * len(column)
    return None, []


def read_parquet(files: list[Path], mapping: Mapping[str, str]) -> ArrowRows:
    """The rows of .parquet files.

    Raises:
        UserError: one cannot be read, or two differ in the types of their columns.
    """
    import datasets  # heavy, and needed here alone

    place = ", ".join(str(file) for file in files)
    datasets.disable_progress_bars()
    try:
        for file in files:
            require_plain(file)
        loaded = [datasets.Dataset.from_parquet(str(file)) for file in files]
        datasets.concatenate_datasets(loaded)  # its checks; the tables themselves are read one after another
    except Exception as error:  # datasets and pyarrow wrap one another's errors
        raise UserError(f"{place}: cannot be read as parquet ({type(error).__name__}: {error})") from error
    return ArrowRows([Part(str(file), table) for file, table in zip(files, loaded, strict=True)], mapping, files[0].parent, place)


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one that `datasets.save_to_disk` wrote, of one table or of several by split."""
    return (folder / "dataset_dict.json").is_file() or ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file())


def read_saved_dataset(folder: Path, mapping: Mapping[str, str]) -> ArrowRows:
    """The rows of a folder that `datasets.save_to_disk` wrote; of several tables each key is a split.

    Raises:
        UserError: it cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        for path in folder.rglob("*"):
            if not path.is_dir():
                require_plain(path)
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise UserError(
            f"{folder}: cannot be read as a folder of datasets.save_to_disk ({type(error).__name__}: {error}); save or copy it again"
        ) from error
    return ArrowRows(parts_of(loaded, str(folder)), mapping, folder, str(folder))


def parts_of(loaded: Any, name: str) -> list[Part]:
    """The tables of a Dataset or a DatasetDict."""
    if not isinstance(loaded, dict):
        return [Part(name, loaded)]
    return [Part(f"{name} {split}", table, str(split)) for split, table in loaded.items()]

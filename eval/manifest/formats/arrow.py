"""Rows out of Arrow tables that stay on disk, memory-mapped by the `datasets` library: a set larger than memory works.

It reads .parquet files, folders written by `datasets.save_to_disk`, and data sets on the hub. Images are paths or embedded {bytes, path};
none is decoded, or even copied, while rows are read.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.errors import UserError
from eval.files import files_stamp, require_plain
from eval.manifest.formats.encoding import not_utf8_columns, records_of, values_of
from eval.manifest.formats.file_names import split_of
from eval.manifest.formats.img2dataset import STATUS, picture_column, why_left_out
from eval.manifest.rows import EmbeddedImage, Place, Row, RowColumns, RowSource, is_unicode, row_of

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
        self.left_out: list[tuple[str, str]] = []
        self.mapping = mapping
        self._parts = [Part(part.name, part.table.with_format("arrow"), part.split) for part in parts]
        columns = [column for part in parts for column in part.table.column_names]
        # A split column that the configuration names and that is not there stays a fault.
        columns += ["split" for part in parts if part.split is not None and mapping["split"] == "split"]
        self.columns = list(dict.fromkeys(columns))
        # The pictures of img2dataset and webdataset are in a column that is named for their format, and the id is the key.
        is_asked = mapping["image"] != "image" or "image" in columns
        self._keyed = picture_column(self.columns) if not is_asked else None
        if self._keyed is not None:
            self.columns += [name for name in ("image", "id", "caption") if name not in columns]

    @property
    def _image(self) -> str:
        """The column of the pictures."""
        return self._keyed or self.mapping["image"]

    def __iter__(self) -> Iterator[Row]:
        first, named = 0, self._named_by_row()
        for part in self._parts:
            yield from self._rows_of(part, first, named)
            first += len(part.table)

    def as_columns(self) -> RowColumns | None:
        """As `RowSource`, where pictures are paths and no column is of a kind of `datasets`' own."""
        wanted = [name for name in dict.fromkeys(self.mapping.values()) if name in self.columns]
        if self._keyed is not None or not self._parts:
            return None
        tables = []
        for part in self._parts:
            chosen = part.table.select_columns([name for name in wanted if name in part.table.column_names])
            if any(hasattr(feature, "int2str") for feature in chosen.features.values()):
                return None
            table, split = chosen[:], self.mapping["split"]
            if not isinstance(table, pa.Table) or _split_image_column(table, self._image)[0] is not None:
                return None
            if part.split is not None and split not in table.column_names:
                table = table.append_column(split, pa.repeat(pa.scalar(part.split), len(table)))
            tables.append(table)
        try:
            whole = pa.concat_tables(tables, promote_options="default")
        except pa.ArrowException:
            return None
        sizes = [len(table) for table in tables]
        return RowColumns(
            dict(zip(whole.column_names, whole.columns, strict=True)),
            [f"{part.name} row " for part in self._parts],
            np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([np.arange(1, size + 1) for size in sizes]),
        )

    def _rows_of(self, part: Part, first: int, named: Mapping[int, int]) -> Iterator[Row]:
        """The rows of one table, the first of which is number `first` of all; `named`: as `_named_by_row`."""
        image, name_of_rows = self._image, f"{part.name} row "
        wanted = dict.fromkeys([*self.mapping.values(), *((image, "key", "__key__", "txt", *STATUS) if self._keyed is not None else ())])
        table = part.table.select_columns([name for name in wanted if name in part.table.column_names])
        classes = {name: feature for name, feature in table.features.items() if hasattr(feature, "int2str")}
        for start in range(0, len(table), _ROWS_AT_ONCE):
            batch = table[start : min(start + _ROWS_AT_ONCE, len(table))]
            num_bytes, paths = _split_image_column(batch, image)
            read = [name for name in batch.column_names if num_bytes is None or name != image]
            inner = f"path in {image}"
            bad = {offset: not_utf8_columns({inner: path}) for offset, path in enumerate(paths) if path and not is_unicode(path)}
            for offset, record in enumerate(records_of(batch.select(read), bad)):
                row, embedded = start + offset, None
                if offset in bad:
                    self.faults.append((f"{part.name} row {row + 1}", bad[offset]))
                    continue
                if self._keyed is not None:
                    if "status" in record and (why := why_left_out(record["status"], record.get("error_message"))):
                        self.left_out.append((f"{part.name} row {row + 1}", why))
                        continue
                    record = {"id": record.get("key", record.get("__key__")), "caption": record.get("txt")} | record
                for name, feature in classes.items():  # ClassLabels, which store what is missing as -1, or as null
                    record[name] = None if record[name] is None or record[name] < 0 else feature.int2str(record[name])
                record.setdefault(self.mapping["split"], part.split)
                if num_bytes is not None:
                    record[image] = paths[offset]
                    if (size := num_bytes[offset]) is not None:  # none at all is a broken picture, whatever file has its inner path
                        number = first + row
                        own = record.get(self.mapping["id"]), None if number in named else paths[offset]
                        names = (*own, f"row-{named.get(number, number) + 1:07d}")
                        key = next(str(name) for name in names if name not in (None, ""))
                        embedded = EmbeddedImage(number, key, size)
                yield row_of(Place(name_of_rows, row + 1), record, self.mapping, embedded)

    def _named_by_row(self) -> dict[int, int]:
        """Rows whose embedded picture has no id, and an inner path that other bytes of the split have too, with the first row of its bytes.

        Any other embedded picture is named by its id, its inner path, or the number of its row among all.
        """
        batches = [batch for part in self._parts for batch in self._inner_paths(part)]
        codes_R = pa.chunked_array([paths for paths, _ in batches], pa.large_string()).combine_chunks().dictionary_encode().indices
        code_R, num_bytes_R = codes_R.fill_null(-1).to_numpy(), np.concatenate([sizes for _, sizes in batches])
        counts = np.bincount(code_R + 1)[1:]
        by_path = defaultdict[int, list[int]](list)
        for row in np.flatnonzero(np.append(counts, 0)[code_R] > 1).tolist():
            by_path[code_R[row]].append(row)
        named: dict[int, int] = {}
        for rows in by_path.values():
            first: dict[Any, int] = {}  # row of each content
            sizes = Counter(num_bytes_R[rows].tolist())
            of_row = {}
            for row in rows:
                size = num_bytes_R[row]
                content = hashlib.sha256(self.image_bytes(row)).digest() if sizes[size] > 1 else size
                of_row[row] = first.setdefault(content, row)
            if len(first) > 1:
                named |= of_row
        return named

    def _inner_paths(self, part: Part) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """(split and inner path, size in bytes) of some rows after others; null where no inner path can name an embedded picture."""
        image, id_, split = self._image, self.mapping["id"], self.mapping["split"]
        table = part.table.select_columns([name for name in dict.fromkeys((image, id_, split)) if name in part.table.column_names])
        if _split_image_column(table[:0], image)[0] is None:
            yield pa.nulls(len(part.table), pa.large_string()), np.zeros(len(part.table), dtype=np.int64)
            return
        for start in range(0, len(table), _ROWS_AT_ONCE):
            batch = table[start : min(start + _ROWS_AT_ONCE, len(table))]
            num_bytes, paths = _split_image_column(batch, image)
            ids, splits = (values_of(batch[name]) if name in batch.column_names else [None] * len(batch) for name in (id_, split))
            scopes = [None] * len(batch) if self.is_one_set else [part.split if name is None else name for name in splits]
            names = [
                f"{scope!r} {path}" if size is not None and path and is_unicode(path) and own in (None, "") else None
                for scope, path, size, own in zip(scopes, paths, num_bytes or (), ids, strict=True)
            ]
            yield pa.array(names, pa.large_string()), np.array([size or 0 for size in num_bytes or ()], dtype=np.int64)

    @cached_property
    def stamp(self) -> tuple[int, int]:
        """As `RowSource`, of the memory-mapped files."""
        return 0, files_stamp(file["filename"] for part in self._parts for file in part.table.cache_files)

    def image_bytes(self, row: int) -> bytes:
        """Embedded bytes of a row, read through the memory map."""
        for part in self._parts:
            if row < len(part.table):
                value = part.table[row : row + 1][self._image][0].as_py()
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
        paths = values_of(pc.struct_field(column, "path")) if kind.get_field_index("path") >= 0 else [None] * len(column)
        return pc.binary_length(pc.struct_field(column, "bytes")).to_pylist(), paths
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(column).to_pylist(), [None] * len(column)
    return None, []


def read_parquet(files: list[Path], mapping: Mapping[str, str], *, are_splits_named: bool = False) -> ArrowRows:
    """The rows of .parquet files; their names say the split if `are_splits_named`.

    Raises:
        UserError: one cannot be read, or two differ in the types of their columns.
    """
    import datasets  # heavy, and needed here alone

    place = ", ".join(str(file) for file in files)
    datasets.disable_progress_bars()
    try:
        for file in files:
            require_plain(file)
        loaded = [_parquet_table(file) for file in files]
        datasets.concatenate_datasets(loaded)  # its checks; the tables themselves are read one after another
    except Exception as error:  # datasets and pyarrow wrap one another's errors
        raise UserError(f"{place}: cannot be read as parquet ({type(error).__name__}: {error})") from error
    parts = [Part(str(file), table, split_of(file) if are_splits_named else None) for file, table in zip(files, loaded, strict=True)]
    return ArrowRows(parts, mapping, files[0].parent, place)


def _parquet_table(file: Path) -> Any:
    """The table of one file; of one without rows, of which `datasets` makes an error, the columns."""
    import datasets

    if pq.read_metadata(file).num_rows == 0:
        return datasets.Dataset(pq.read_table(file))
    return datasets.Dataset.from_parquet(str(file))


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

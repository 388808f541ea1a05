"""Vectors as files: a row for each image and each caption, its id and its unit vector, and vectors.json, which says what they are.

    parquet  images.parquet, captions.parquet: id, vector (a list of fixed size), captions with image_id and text
    npy      images.npy, captions.npy: the vectors alone, (N, D); images.jsonl, captions.jsonl: the other columns, line by line

Where there is a correction (eval/search/nnn.py) it is a column of its own. float16 is each number rounded; int8 is each vector divided by
its own largest magnitude, times 127, rounded: its length is lost, and a cosine needs none. All are written, and read back, a part at a
time. Shape letters: N rows, n rows of a part, D width.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from eval.atomic import Content, hash_file, replace_files
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.embedding_files import EmbeddingRows
from eval.errors import UserError, writing
from eval.files import read_text
from eval.processes import Processes
from eval.search.retrieve import Embedded

Dtype = Literal["float32", "float16", "int8"]
Format = Literal["parquet", "npy"]
SIDES = ("images", "captions")
RECORD = "vectors.json"
HOW_STORED = {
    "float32": "as the model gives them, of length 1",
    "float16": "rounded to float16; length 1 but for that",
    "int8": "each vector divided by its own largest magnitude, times 127, rounded; divide by its length to get back a unit vector",
}
ROWS_AT_ONCE = 4096


def to_stored(vectors_nD: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Float32 unit vectors as they are stored.

    >>> to_stored(np.float32([[0.6, -0.8]]), "int8").tolist()
    [[95, -127]]
    """
    if dtype != "int8":
        return vectors_nD.astype(dtype)
    largest_n1 = np.abs(vectors_nD).max(axis=1, keepdims=True)
    return np.rint(vectors_nD / np.maximum(largest_n1, np.finfo(np.float32).tiny) * 127).astype(np.int8)


def from_stored(stored_nD: np.ndarray) -> np.ndarray:
    """Stored vectors as float32 unit vectors; float32 ones as they are."""
    if stored_nD.dtype == np.float32:
        return stored_nD
    vectors_nD = stored_nD.astype(np.float32)
    return vectors_nD / np.maximum(np.linalg.norm(vectors_nD, axis=1, keepdims=True), np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a set to be written.

    Attributes:
        rows: its unit vectors.
        columns: the other columns by name, each of N values; `id` first.
    """

    rows: EmbeddingRows
    columns: Mapping[str, Sequence[Any] | np.ndarray]

    @property
    def spans(self) -> list[slice]:
        """ROWS_AT_ONCE rows after the other."""
        num_rows = self.rows.num_rows
        return [slice(start, min(start + ROWS_AT_ONCE, num_rows)) for start in range(0, num_rows, ROWS_AT_ONCE)]

    def parts(self) -> Iterator[np.ndarray]:
        """The vectors of each span, float32; all processes read them together."""
        for span in self.spans:
            yield self.rows.rows(span.start, span.stop)


def write_vectors(
    folder: Path, sides: Mapping[str, Side], record: dict[str, Any], dtype: Dtype, form: Format, processes: Processes
) -> None:
    """Write all files, whole or not at all; call on every process: the main one writes, the others read their share of the rows along.

    Raises:
        UserError: a file cannot be written; on every process.
    """
    parts = {side: one.parts() for side, one in sides.items()}
    found: dict[str, Any] = {}
    contents: dict[Path, Content] = {}
    for side, one in sides.items():
        writers: dict[str, Callable[[Path], None]] = (
            {f"{side}.parquet": partial(_write_parquet, side=one, parts=parts[side], dtype=dtype)}
            if form == "parquet"
            else {
                f"{side}.npy": partial(_write_npy, side=one, parts=parts[side], dtype=dtype),
                f"{side}.jsonl": partial(_write_rows, side=one),
            }
        )
        found[side] = {"num_rows": one.rows.num_rows, "columns": list(one.columns), "sha256": {}}
        for name, write in writers.items():
            contents[folder / name] = _hashed(write, found[side]["sha256"], name)

    def write_record(path: Path) -> None:
        path.write_text(json.dumps(stated | found, indent=1) + "\n", encoding="utf-8")

    stated = {"format": form, "dtype": dtype, "dim": sides["images"].rows.width, "normalised": dtype != "int8"}
    stated |= {"stored": HOW_STORED[dtype], "similarity": "cosine, the dot product of unit vectors"} | record
    with processes.jointly():
        try:
            if processes.is_main:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    replace_files({**contents, folder / RECORD: write_record})
                    for other in (folder / f"{side}.{ending}" for side in sides for ending in ("parquet", "npy", "jsonl")):
                        if other not in contents:  # of vectors in the other form, which were there before
                            other.unlink(missing_ok=True)
        finally:  # what is left, for all processes read together
            for side in sides:
                for _ in parts[side]:
                    pass


def _hashed(write: Callable[[Path], None], found: dict[str, str], name: str) -> Callable[[Path], None]:
    def write_and_hash(path: Path) -> None:
        write(path)
        found[name] = hash_file(path)

    return write_and_hash


def _write_parquet(path: Path, side: Side, parts: Iterator[np.ndarray], dtype: Dtype) -> None:
    """One side, a row group for each span."""
    value = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}[dtype]
    kinds = {name: pa.float32() if name == "correction" else pa.string() for name in side.columns}
    schema = pa.schema([*kinds.items(), ("vector", pa.list_(value, side.rows.width))])
    with pq.ParquetWriter(path, schema) as writer:
        for span, vectors_nD in zip(side.spans, parts, strict=True):
            vector = pa.FixedSizeListArray.from_arrays(pa.array(to_stored(vectors_nD, dtype).reshape(-1)), side.rows.width)
            columns = [pa.array(values[span], type=kinds[name]) for name, values in side.columns.items()]
            writer.write_table(pa.Table.from_arrays([*columns, vector], schema=schema))


def _write_npy(path: Path, side: Side, parts: Iterator[np.ndarray], dtype: Dtype) -> None:
    """The vectors of one side, as numpy.save does."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (side.rows.num_rows, side.rows.width)})
        for vectors_nD in parts:
            file.write(np.ascontiguousarray(to_stored(vectors_nD, dtype)).data)


def _write_rows(path: Path, side: Side) -> None:
    """The other columns of one side, an object a line."""
    with path.open("w", encoding="utf-8") as file:
        for span in side.spans:
            values = [np.asarray(each[span]).tolist() for each in side.columns.values()]
            file.writelines(
                json.dumps(dict(zip(side.columns, row, strict=True)), ensure_ascii=False) + "\n" for row in zip(*values, strict=True)
            )


class StoredRows:
    """The vectors of one written side as `EmbeddingRows`: read from disk a part at a time, float32, unit."""

    def __init__(self, folder: Path, side: str, form: Format) -> None:
        """Raises OSError or pyarrow.ArrowException where the file cannot be read."""
        self._stored, self._file = None, None
        if form == "npy":
            self._stored = np.load(folder / f"{side}.npy", mmap_mode="r", allow_pickle=False)
            self.num_rows, self.width = self._stored.shape
        else:
            self._file = pq.ParquetFile(folder / f"{side}.parquet")
            self.num_rows, self.width = self._file.metadata.num_rows, self._file.schema_arrow.field("vector").type.list_size

    def rows(self, start: int, stop: int) -> np.ndarray:
        """As :class:`eval.encoder.embedding_files.EmbeddingRows` says."""
        if self._stored is not None:
            return from_stored(np.array(self._stored[start:stop]))
        assert self._file is not None
        groups = range(start // ROWS_AT_ONCE, -(-stop // ROWS_AT_ONCE))
        column = self._file.read_row_groups(list(groups), columns=["vector"])["vector"].combine_chunks()
        stored_nD = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
        first = start - groups.start * ROWS_AT_ONCE
        return from_stored(np.array(stored_nD[first : first + stop - start]))  # a copy: torch requires writable arrays


def read_ids(folder: Path, side: str, form: Format) -> list[str]:
    """The ids of one written side, in the order of its rows; errors as of :class:`StoredRows`."""
    if form == "parquet":
        return pq.read_table(folder / f"{side}.parquet", columns=["id"])["id"].to_pylist()
    with (folder / f"{side}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["id"] for line in lines]


def read_embedded(folder: str | os.PathLike[str], dataset: RetrievalSet) -> Embedded:
    """A set as it was embedded to a folder, ready for `eval.search.retrieve.find`: `python -m eval` of the same vectors without the model.

    Raises:
        UserError: the folder holds no vectors, or those of another set.
    """
    place = Path(folder)
    try:
        record = json.loads(read_text(place / RECORD))
        form, model = record["format"], record["model"]
        sides, ids = {side: StoredRows(place, side, form) for side in SIDES}, {side: read_ids(place, side, form) for side in SIDES}
        images_ID, captions_CD = (sides[side].rows(0, sides[side].num_rows) for side in SIDES)
        scale, bias = float(model["logit_scale"]), float(model["logit_bias"])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: cannot be read as vectors ({error!r}); write them with ./launch.sh embed") from error
    for side, own in (("images", dataset.image_ids), ("captions", dataset.caption_ids)):
        if ids[side] != list(own):
            differing = next((pair for pair in zip(ids[side], own, strict=False) if pair[0] != pair[1]), (len(ids[side]), len(own)))
            raise UserError(
                f"{place}: the {side} are not those of {dataset.source} (split {dataset.split!r}): {differing[0]!r} in place of "
                f"{differing[1]!r}; embed this split"
            )
    return Embedded(images_ID, captions_CD, scale, bias, 0.0, 0.0, torch.device("cpu"), model["inputs"])

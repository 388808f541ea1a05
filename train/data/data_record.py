"""The pictures and captions of a run as they were when it began: runs/NAME/data.parquet, compared before anything goes on from it.

A row an image of every split and retention set. A file of the size and time of change that are recorded is not opened; else the content
decides, by a hash of its size, its first and its last 16 KiB: a copy or a touch is no change. Shape letters: I images of a set.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.atomic import replace_files
from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.files import open_plain
from train.data.splits import Splits

FILE = "data.parquet"
"""In the run's folder; a run of an earlier version has none."""
_EDGE_BYTES = 1 << 14
_NUM_THREADS = 16  # files are waited for, on a disk or a server
_IMAGES_AT_ONCE = 256
_MOST_NAMED = 5


def record_data(path: Path, splits: Splits) -> None:
    """Write data.parquet: what the run begins with. Opens every picture.

    Raises:
        OSError: it cannot be written.
    """
    _write(path, {name: _rows_of(dataset, None) for name, dataset in _named_sets(splits)})


def check_data(path: Path, splits: Splits, source: str) -> None:
    """Refuse data that are not those of data.parquet, but for images that are left out as asked.

    Args:
        source: what to call them, for the message.

    Raises:
        UserError: naming the first images that changed, by kind of change; or the file is damaged.
        OSError: it cannot be written: times and places that changed alone are noted.
    """
    try:
        table = pq.read_table(path)
        recorded = {name: table.filter(pc.equal(table["set"], name)).drop(["set"]) for name in table["set"].unique().to_pylist()}
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({error}), and with it what the data were when the run began. Restore it; or remove it, and the data count "
            "as unchanged"
        ) from error
    names = pa.array({one.image for one in splits.skipped}, type=pa.string())
    left_out = {name: rows.filter(pc.is_in(rows["image_id"], names)) for name, rows in recorded.items() if name != "train"}
    recorded |= {name: recorded[name].filter(pc.invert(pc.is_in(recorded[name]["image_id"], names))) for name in left_out}
    found = {name: _rows_of(dataset, recorded.get(name)) for name, dataset in _named_sets(splits)}
    lines = [line for name, rows in found.items() if name in recorded for line in _changes(name, recorded[name], rows)]
    if lines:
        folder = path.parent
        raise UserError(
            f"{source} holds other data than when {folder} was begun:\n  " + "\n  ".join(lines) + "\nBring the data back, or give the "
            "run another name="
        )
    if found != recorded:
        _write(path, {name: pa.concat_tables([rows, *([left_out[name]] if name in left_out else [])]) for name, rows in found.items()})


def _named_sets(splits: Splits) -> Iterator[tuple[str, RetrievalSet]]:
    yield "train", splits.train
    yield from ((name, split) for name, split in (("val", splits.val), ("test", splits.test)) if split is not None)
    yield from ((f"watch {watched.config.name}", watched.dataset) for watched in splits.watch)


def _write(path: Path, rows: dict[str, pa.Table]) -> None:
    tables = [table.add_column(0, "set", pa.array([name] * len(table)).dictionary_encode()) for name, table in rows.items()]
    replace_files({path: partial(pq.write_table, pa.concat_tables(tables, promote_options="default"))})


def _rows_of(dataset: RetrievalSet, recorded: pa.Table | None) -> pa.Table:
    """image_id, place, captions (with the group, by hash), size, mtime_ns and content (by hash) of every image of a set.

    Args:
        recorded: rows of the same set, whose content is taken over where size and time are the same.
    """
    names = dataset.group_names() or [None] * dataset.num_images
    texts = iter(dataset.captions)
    captions = [
        hashlib.sha256(repr((name, list(islice(texts, count)))).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        for name, count in zip(names, np.diff(dataset.caption_offsets).tolist(), strict=True)
    ]
    ids = dataset.image_ids.array.cast(pa.string())
    stamps_I2 = np.array(_in_threads(dataset.picture_stamp, range(dataset.num_images)), dtype=np.int64).reshape(-1, 2)
    content: list[str | None] = [None] * dataset.num_images
    if recorded is not None:
        row_I = pc.index_in(ids, recorded["image_id"].combine_chunks())
        known = recorded.select(["size", "mtime_ns", "content"]).take(row_I)
        same_I = np.array(known["size"].fill_null(-1)) == stamps_I2[:, 0]
        same_I &= (np.array(known["mtime_ns"].fill_null(-1)) == stamps_I2[:, 1]) & (stamps_I2[:, 1] > 0)
        content = [text if same else None for text, same in zip(known["content"].to_pylist(), same_I, strict=True)]
    unknown = [image for image, text in enumerate(content) if text is None]
    for image, text in zip(unknown, _in_threads(partial(_content, dataset), unknown), strict=True):
        content[image] = text
    columns: dict[str, Any] = {"image_id": ids, "place": [dataset.image_place(image) for image in range(dataset.num_images)]}
    columns |= {"captions": captions, "size": stamps_I2[:, 0], "mtime_ns": stamps_I2[:, 1], "content": content}
    return pa.table(columns)


def _in_threads(of: Callable[[int], Any], images: Sequence[int]) -> list[Any]:
    """What `of` gives for each image, in order."""

    def of_some(start: int) -> list[Any]:
        return [of(image) for image in images[start : start + _IMAGES_AT_ONCE]]

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(chain.from_iterable(threads.map(of_some, range(0, len(images), _IMAGES_AT_ONCE))))


def _content(dataset: RetrievalSet, image: int) -> str:
    """Hash of a picture's size, first and last bytes; empty where it cannot be read, which a picture that stays so is no change."""
    path = dataset.path(image)
    try:
        if path:
            size, edges = _edges_of_file(path)
        else:
            whole = dataset.embedded_bytes(image)
            size, edges = len(whole), whole[:_EDGE_BYTES] + whole[-_EDGE_BYTES:]
    except OSError:
        return ""
    return hashlib.sha256(f"{size} ".encode() + edges).hexdigest()[:32]


def _edges_of_file(path: str) -> tuple[int, bytes]:
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        return size, os.pread(file.fileno(), _EDGE_BYTES, 0) + os.pread(file.fileno(), _EDGE_BYTES, max(0, size - _EDGE_BYTES))


def _changes(name: str, recorded: pa.Table, found: pa.Table) -> list[str]:
    """What differs between the rows of a set then and now, a line a kind of change."""
    before, now = (rows["image_id"].combine_chunks() for rows in (recorded, found))
    kept = pc.index_in(now, before)
    was = recorded.take(kept)
    changed = {
        f"picture(s) of {name} are gone": before.filter(pc.is_null(pc.index_in(before, now))),
        f"picture(s) of {name} are new": now.filter(pc.is_null(kept)),
        f"picture(s) of {name} have other bytes": now.filter(pc.fill_null(pc.not_equal(was["content"], found["content"]), False)),
        f"picture(s) of {name} have other captions or another group": now.filter(
            pc.fill_null(pc.not_equal(was["captions"], found["captions"]), False)
        ),
    }
    return [f"{len(ids)} {words}: {_first(ids.to_pylist())}" for words, ids in changed.items() if len(ids)]


def _first(ids: list[str]) -> str:
    return ", ".join(ids[:_MOST_NAMED]) + (", ..." if len(ids) > _MOST_NAMED else "")

"""Cache of the indices of shards, in the hub's cache for assets (HF_ASSETS_CACHE): a file for each shard, named by a hash of its path.

A file is the SHA-256 of what follows, and a Parquet table whose metadata say of which shard it is. One that is damaged, of another shard or
of the shard as it was before is made again. A cache that cannot be written is done without. A shard that changed a moment ago is not
cached: another change within the resolution of file times could not be seen.
"""

import hashlib
import io
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.atomic import replace_files
from eval.dataset.images import picture_suffixes
from eval.files import SETTLED_SECONDS, TEXT_BYTES, cache_folder, read_bytes
from eval.manifest.formats.shard_index import FIELDS, ShardIndex, index_shard

_VERSION = 1
"""Of the rules by which a shard is indexed, and of the file."""
_DIGEST_BYTES = hashlib.sha256().digest_size


def cached_index(shard: Path) -> ShardIndex:
    """As `index_shard`, read from the cache where the shard is as it was then; an index with faults is not cached.

    Raises:
        FileError, OSError: as `index_shard`.
    """
    stamp = _stamp(shard)
    file = cache_file(shard)
    with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return _parsed(read_bytes(file, TEXT_BYTES), stamp)
    index = index_shard(shard)
    if not index.faults:
        with suppress(OSError):
            if _stamp(shard) == stamp and time.time() - os.stat(shard).st_mtime > SETTLED_SECONDS:
                file.parent.mkdir(parents=True, exist_ok=True)
                replace_files({file: _content(index, stamp)})
    return index


def cache_file(shard: Path) -> Path:
    """Where the index of a shard is cached."""
    name = hashlib.sha256(os.fsencode(os.path.abspath(shard))).hexdigest()
    return cache_folder("shards") / f"{name}.index"


def _stamp(shard: Path) -> str:
    """Which shard it is, and what its index follows from."""
    found = os.stat(shard)
    return json.dumps([_VERSION, os.path.abspath(shard), found.st_size, found.st_mtime_ns, found.st_ino, sorted(picture_suffixes())])


def _content(index: ShardIndex, stamp: str) -> bytes:
    columns = {"key": index.keys}
    for number, name in enumerate(FIELDS):
        columns |= {f"{name} {what}": pa.array(index.ranges_NF2[:, number, part]) for part, what in enumerate(("offset", "size"))}
    table = pa.table(columns).replace_schema_metadata({"stamp": stamp, "left_out": json.dumps(index.left_out)})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return hashlib.sha256(file.getvalue()).digest() + file.getvalue()


def _parsed(content: bytes, stamp: str) -> ShardIndex:
    """The index in a file of the cache.

    Raises:
        ValueError, KeyError, TypeError, pa.ArrowException: it is damaged, or of another shard.
    """
    parquet = memoryview(content)[_DIGEST_BYTES:]
    if hashlib.sha256(parquet).digest() != content[:_DIGEST_BYTES]:
        raise ValueError("damaged")
    table = pq.read_table(pa.BufferReader(parquet))
    if table.schema.metadata[b"stamp"].decode() != stamp:
        raise ValueError("of another shard, or of this one before it was changed")
    ranges_F2N = [[table[f"{name} {what}"].to_numpy() for what in ("offset", "size")] for name in FIELDS]
    left_out = [(str(where), str(why)) for where, why in json.loads(table.schema.metadata[b"left_out"])]
    ranges_NF2 = np.ascontiguousarray(np.array(ranges_F2N, dtype=np.int64).transpose(2, 0, 1))
    return ShardIndex(table["key"].combine_chunks(), ranges_NF2, left_out=left_out)

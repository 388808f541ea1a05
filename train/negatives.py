"""The table of mined negatives: which captions each image must learn to tell from its own, how it is named, written and read.

A table is named by what it follows from (weights, data, rules), so a stale one is never read; it is written whole or not at all.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train.pool import OWNER, CaptionPool


@dataclass(frozen=True)
class Negatives:
    """Mined captions of every image of a split, CSR: those of image i are captions_N[offsets[i]:offsets[i + 1]], by rank.

    Attributes:
        name: the hash of weights, data and rules.
        offsets: int64, shape (images + 1,).
        captions_N: int64, indices into the pool (train/pool.py).
        ranks_N: int64, rank of each in the image's own retrieval, from 1.
        scores_N: float32, logits (scale * cosine + bias).
        margins_N: float32, logit of the image's best true caption less the score.
        match_N: float32, probability that a cross-encoder gives the pair of matching; None: none was asked.
        relabelled_N: bool, True where the caption is a positive of its image while the table is in force; None: nowhere.
    """

    name: str
    offsets: np.ndarray
    captions_N: np.ndarray
    ranks_N: np.ndarray
    scores_N: np.ndarray
    margins_N: np.ndarray
    match_N: np.ndarray | None = None
    relabelled_N: np.ndarray | None = None

    def of(self, image: int) -> np.ndarray:
        """Caption indices mined for an image, int64, possibly none."""
        return self.captions_N[self.offsets[image] : self.offsets[image + 1]]

    def __len__(self) -> int:
        return len(self.captions_N)

    @property
    def image_N(self) -> np.ndarray:
        """Image index of every row."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def is_negative_N(self) -> np.ndarray:
        """bool; False for the relabelled."""
        return np.ones(len(self), dtype=bool) if self.relabelled_N is None else ~self.relabelled_N


def table_name(weights_sha256: str, data_sha256: str, rules: dict[str, Any]) -> str:
    """The name of a table: 16 hex digits of SHA-256 over what it follows from."""
    text = json.dumps([weights_sha256, data_sha256, rules], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_negatives(path: Path, negatives: Negatives, pool: CaptionPool) -> None:
    """Write HASH.parquet: image_id, caption_id, rank, score, margin, label (-1, or +1 where relabelled) and, where a cross-encoder was
    asked, match. Committed by a rename.

    Raises:
        OSError: it cannot be written.
    """
    image_ids = pa.array(list(pool.dataset.image_ids))
    columns = {
        "image_id": image_ids.take(pa.array(negatives.image_N)),
        "caption_id": pa.array([pool.caption_id(int(caption)) for caption in negatives.captions_N], type=pa.string()),
        "rank": negatives.ranks_N,
        "score": negatives.scores_N,
        "margin": negatives.margins_N,
        "label": np.where(negatives.is_negative_N, -1, 1).astype(np.int8),
    }
    if negatives.match_N is not None:
        columns["match"] = negatives.match_N
    table = pa.table(columns).replace_schema_metadata({"name": negatives.name})
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)  # of a writer that was killed; after a resume it is the same table that is written again
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_negatives(path: Path, name: str, pool: CaptionPool) -> Negatives:
    """Read a table back.

    Raises:
        ValueError: it is another table than the one named, or does not fit the data set.
        OSError: it cannot be read.
    """
    table = pq.read_table(path)
    found = (table.schema.metadata or {}).get(b"name", b"").decode()
    if found != name:
        raise ValueError(f"{path}: holds table {found!r}, expected {name!r}")
    image_index = {image: index for index, image in enumerate(pool.dataset.image_ids)}
    rows, captions = [], []
    for image_id, caption_id in zip(table["image_id"].to_pylist(), table["caption_id"].to_pylist(), strict=True):
        try:
            rows.append(image_index[image_id])
            captions.append(_caption_index(caption_id, image_index, pool))
        except (LookupError, ValueError):
            raise ValueError(f"{path}: names {image_id!r} and {caption_id!r}, which the data does not have") from None
    offsets = np.concatenate([[0], np.cumsum(np.bincount(np.array(rows, dtype=np.int64), minlength=pool.dataset.num_images))])
    # A table of before there were labels has none.
    relabelled_N = table["label"].to_numpy() > 0 if "label" in table.column_names else np.zeros(len(rows), dtype=bool)
    return Negatives(
        name,
        offsets.astype(np.int64),
        np.array(captions, dtype=np.int64),
        table["rank"].to_numpy(),
        table["score"].to_numpy(),
        table["margin"].to_numpy(),
        table["match"].to_numpy() if "match" in table.column_names else None,
        relabelled_N if relabelled_N.any() else None,
    )


def _caption_index(caption_id: str, image_index: dict[str, int], pool: CaptionPool) -> int:
    """The index of a caption in the pool.

    Raises:
        LookupError, ValueError: it is not there.
    """
    owner, _, place = caption_id.rpartition("#")
    if owner in image_index:
        return int(pool.dataset.caption_offsets[image_index[owner]]) + int(place)
    if owner == OWNER:
        return pool.index_of_line(int(place))
    raise LookupError(caption_id)

"""The table of mined negatives: the hard-negative captions of each image; its name, and how it is written and read.

The name of a table is a hash of weights, data and rules, so a stale one is never read. It is written whole or not at all.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.atomic import replace_files
from train.data.caption_pool import CaptionPool

_DOUBTFUL, _OWN = 0, 2  # labels of rows that were not mined


@dataclass(frozen=True)
class Negatives:
    """Mined captions of every image of a split, CSR: those of image i are captions_N[offsets[i]:offsets[i + 1]], by rank.

    Attributes:
        name: the hash of weights, data and rules.
        offsets: int64, shape (images + 1,).
        captions_N: int64, indices into the pool (train/data/caption_pool.py).
        ranks_N: int64, rank of each in the image's retrieved list, from 1.
        scores_N: float32, logits (scale * cosine + bias).
        margins_N: float32, logit of the image's best positive caption less the score.
        match_N: float32, match probability of the cross-encoder; None without one.
        relabelled_N: bool, True where the caption is a positive of its image as long as this table is used; None: nowhere.
        doubtful_2D: int64, (image, caption) of the pairs that match by the cross-encoder and are not relabelled: the loss leaves them
            out wherever they meet, in a batch or among mined columns; None: none.
        teacher_logits_N: float32, the cross-encoder's match logit less its no-match logit, for distillation; None without it.
        own_teacher_logits_C: float32, the same of each caption of the split with its own image; NaN where the image has no row here;
            None: not needed.
    """

    name: str
    offsets: np.ndarray
    captions_N: np.ndarray
    ranks_N: np.ndarray
    scores_N: np.ndarray
    margins_N: np.ndarray
    match_N: np.ndarray | None = None
    relabelled_N: np.ndarray | None = None
    doubtful_2D: np.ndarray | None = None
    teacher_logits_N: np.ndarray | None = None
    own_teacher_logits_C: np.ndarray | None = None

    def of(self, image: int) -> np.ndarray:
        """Caption indices mined for an image, int64, possibly none."""
        return self.captions_N[self.offsets[image] : self.offsets[image + 1]]

    def __len__(self) -> int:
        return len(self.captions_N)

    @property
    def image_N(self) -> np.ndarray:
        """Image index of every row, int64."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def is_negative_N(self) -> np.ndarray:
        """False for relabelled rows, bool of shape (N,)."""
        return np.ones(len(self), dtype=bool) if self.relabelled_N is None else ~self.relabelled_N


def table_name(weights_sha256: str, data_sha256: str, rules: dict[str, Any]) -> str:
    """The name of a table: 16 hex digits of SHA-256 over weights, data and rules."""
    text = json.dumps([weights_sha256, data_sha256, rules], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_negatives(path: Path, negatives: Negatives, pool: CaptionPool) -> None:
    """Write HASH.parquet: image_id, caption_id, rank, score, margin, label (-1, or +1 where relabelled), match with a cross-encoder, and
    matcher_logit for distillation. After these rows come the doubtful pairs with label 0 alone, and images' own captions with label 2 and
    matcher_logit alone. Committed by a rename.

    Raises:
        OSError: it cannot be written.
    """
    columns = _pair_columns(negatives.image_N, negatives.captions_N, pool) | {
        "rank": negatives.ranks_N,
        "score": negatives.scores_N,
        "margin": negatives.margins_N,
        "label": np.where(negatives.is_negative_N, -1, 1).astype(np.int8),
    }
    if negatives.match_N is not None:
        columns["match"] = negatives.match_N
    if negatives.teacher_logits_N is not None:
        columns["matcher_logit"] = negatives.teacher_logits_N
    table = pa.table(columns)
    if negatives.doubtful_2D is not None:
        pairs = _pair_columns(negatives.doubtful_2D[0], negatives.doubtful_2D[1], pool)
        label = pa.array(np.full(negatives.doubtful_2D.shape[1], _DOUBTFUL, dtype=np.int8))
        table = pa.concat_tables([table, pa.table(pairs | {"label": label})], promote_options="default")
    if negatives.own_teacher_logits_C is not None:
        caption_C = np.flatnonzero(~np.isnan(negatives.own_teacher_logits_C))
        pairs = _pair_columns(pool.dataset.caption_image_C[caption_C], caption_C, pool)
        pairs |= {"label": np.full(len(caption_C), _OWN, dtype=np.int8), "matcher_logit": negatives.own_teacher_logits_C[caption_C]}
        table = pa.concat_tables([table, pa.table(pairs)], promote_options="default")
    table = table.replace_schema_metadata({"name": negatives.name})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_files({path: partial(pq.write_table, table)})


def _pair_columns(image_N: np.ndarray, caption_N: np.ndarray, pool: CaptionPool) -> dict[str, Any]:
    image_ids = pool.dataset.image_ids.array.cast(pa.string())
    return {
        "image_id": image_ids.take(pa.array(image_N)),
        "caption_id": pa.array([pool.caption_id(int(caption)) for caption in caption_N], type=pa.string()),
    }


def read_negatives(path: Path, name: str, pool: CaptionPool) -> Negatives:
    """Read a table back.

    Raises:
        ValueError: it is another table than the one named, or does not fit the data set.
        OSError: it cannot be read.
    """
    table = pq.read_table(path)
    found = (table.schema.metadata or {}).get(b"name", b"").decode()
    if found != name:
        raise ValueError(f"{path}: expected table {name!r}, found {found!r}")
    image_index = {image: index for index, image in enumerate(pool.dataset.image_ids)}
    rows, captions = [], []
    for image_id, caption_id in zip(table["image_id"].to_pylist(), table["caption_id"].to_pylist(), strict=True):
        try:
            rows.append(image_index[image_id])
            captions.append(pool.index_of(caption_id, image_index))
        except (LookupError, ValueError):
            raise ValueError(f"{path}: names {image_id!r} and {caption_id!r}, which the data does not have") from None
    # Tables of earlier versions have no labels.
    label_N = table["label"].to_numpy() if "label" in table.column_names else np.full(len(rows), -1, dtype=np.int8)
    pairs_2N, is_doubtful_N, is_own_N = np.array([rows, captions], dtype=np.int64).reshape(2, -1), label_N == _DOUBTFUL, label_N == _OWN
    own_C = None
    if is_own_N.any():
        own_C = np.full(pool.dataset.num_captions, np.nan, dtype=np.float32)
        own_C[pairs_2N[1, is_own_N]] = table["matcher_logit"].to_numpy()[is_own_N]
    is_row_N = ~(is_doubtful_N | is_own_N)
    table, relabelled_N = table.filter(pa.array(is_row_N)), label_N[is_row_N] > 0
    images_N, captions_N = pairs_2N[:, is_row_N]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(images_N, minlength=pool.dataset.num_images))])
    return Negatives(
        name,
        offsets.astype(np.int64),
        captions_N,
        table["rank"].to_numpy(),
        table["score"].to_numpy(),
        table["margin"].to_numpy(),
        table["match"].to_numpy() if "match" in table.column_names else None,
        relabelled_N if relabelled_N.any() else None,
        pairs_2N[:, is_doubtful_N] if is_doubtful_N.any() else None,
        table["matcher_logit"].to_numpy() if "matcher_logit" in table.column_names else None,
        own_C,
    )

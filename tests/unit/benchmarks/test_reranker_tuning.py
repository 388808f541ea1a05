"""The study of tuning the reranker: the pictures another camera sees."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.reranker_tuning import SCENES, swapped


def pixels(path: Path) -> np.ndarray:
    table = pq.read_table(path, columns=["image"]).slice(0, 3)
    return np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["image"].to_pylist()])


def test_channels_change_places_and_nothing_else(tmp_path: Path) -> None:
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(SCENES).slice(0, 3), few)
    swapped(few, tmp_path / "swapped.parquet", (2, 0, 1))
    before, after = pixels(few), pixels(tmp_path / "swapped.parquet")
    np.testing.assert_array_equal(after, before[..., [2, 0, 1]])
    assert not np.array_equal(after, before)
    tables = pq.read_table(few), pq.read_table(tmp_path / "swapped.parquet")
    assert tables[0].drop_columns("image").equals(tables[1].drop_columns("image")) and tables[0].schema == tables[1].schema

"""train/data/negatives.py: a table is read back unchanged, and never taken for another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.small_job import SmallWorld, load
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.data.negatives import Negatives, read_negatives, table_name, write_negatives


def made(num_images: int, num_captions: int, seed: int = 0) -> Negatives:
    draws = np.random.default_rng(seed)
    counts = draws.integers(0, 4, num_images)
    counts[[0, -1]] = 0  # the ends are where an off-by-one would show
    total = int(counts.sum())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    scores, margins = draws.normal(size=(2, total)).astype(np.float32)
    return Negatives("0123456789abcdef", offsets, draws.integers(0, num_captions, total), draws.integers(1, 64, total), scores, margins)


def test_round_trip(small_world: SmallWorld, tmp_path: Path) -> None:
    dataset = load(small_world.manifest)
    table = made(dataset.num_images, dataset.num_captions)
    path = tmp_path / "negatives" / "t.parquet"
    write_negatives(path, table, CaptionPool(dataset))
    again = read_negatives(path, table.name, CaptionPool(dataset))
    for name, value in vars(table).items():
        found = getattr(again, name)
        assert np.array_equal(found, value) and (not isinstance(value, np.ndarray) or found.dtype == value.dtype), name
    assert [path.name for path in path.parent.iterdir()] == ["t.parquet"]
    written = pq.read_table(path)
    assert written.column_names == ["image_id", "caption_id", "rank", "score", "margin", "label"]
    assert set(written["label"].to_pylist()) == {-1}
    first = int(table.image_N[0])
    assert written["image_id"][0].as_py() == dataset.image_ids[first]
    assert written["caption_id"][0].as_py() == dataset.caption_id(int(table.captions_N[0]))


def test_an_empty_table(small_world: SmallWorld, tmp_path: Path) -> None:
    dataset = load(small_world.manifest)
    nothing = np.empty(0, np.int64)
    table = Negatives(
        "none", np.zeros(dataset.num_images + 1, np.int64), nothing, nothing, np.empty(0, np.float32), np.empty(0, np.float32)
    )
    write_negatives(tmp_path / "t.parquet", table, CaptionPool(dataset))
    again = read_negatives(tmp_path / "t.parquet", "none", CaptionPool(dataset))
    assert len(again) == 0 and again.of(3).tolist() == [] and again.offsets.tolist() == table.offsets.tolist()


def test_another_name_is_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    dataset = load(small_world.manifest)
    write_negatives(tmp_path / "t.parquet", made(dataset.num_images, dataset.num_captions), CaptionPool(dataset))
    with pytest.raises(ValueError, match="expected table 'another', found '0123456789abcdef'"):
        read_negatives(tmp_path / "t.parquet", "another", CaptionPool(dataset))


@pytest.mark.parametrize(("image", "caption"), [("stranger", None), (None, "stranger#0"), (None, "#0")])
def test_a_table_of_other_data_is_refused(small_world: SmallWorld, tmp_path: Path, image: str | None, caption: str | None) -> None:
    dataset = load(small_world.manifest)
    rows = {
        "image_id": [image or dataset.image_ids[0]],
        "caption_id": [caption or dataset.caption_id(0)],
        "rank": [1],
        "score": [0.0],
        "margin": [0.0],
    }
    pq.write_table(pa.table(rows).replace_schema_metadata({"name": "n"}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="which the data does not have"):
        read_negatives(tmp_path / "t.parquet", "n", CaptionPool(dataset))


def test_a_failed_write_leaves_the_old_table(small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load(small_world.manifest)
    path = tmp_path / "t.parquet"
    table = made(dataset.num_images, dataset.num_captions)
    write_negatives(path, table, CaptionPool(dataset))
    before = path.read_bytes()

    def fail(_: pa.Table, target: Path) -> None:
        target.write_bytes(b"half a table")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.data.negatives.pq.write_table", fail)
    with pytest.raises(OSError, match="No space"):
        write_negatives(path, made(dataset.num_images, dataset.num_captions, seed=1), CaptionPool(dataset))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_a_name_follows_from_weights_data_and_rules() -> None:
    names = {table_name(weights, data, {"margin": margin}) for weights in "ab" for data in "ab" for margin in (0.0, 1.0)}
    assert len(names) == 8 and all(len(name) == 16 for name in names)
    assert table_name("a", "b", {"x": 1, "y": 2}) == table_name("a", "b", {"y": 2, "x": 1})


def test_a_table_with_labels_and_captions_of_the_pool(small_world: SmallWorld, tmp_path: Path) -> None:
    dataset = load(small_world.manifest)
    pool = CaptionPool(dataset, AdditionalCaptions(["a fox", "an owl", "two bars"], np.array([2, 3, 7])))
    plain = made(dataset.num_images, len(pool))
    draws = np.random.default_rng(2)
    captions = plain.captions_N.copy()
    captions[:2] = dataset.num_captions + np.array([2, 0])
    chances, relabelled = draws.random(len(plain)).astype(np.float32), draws.random(len(plain)) < 0.5
    doubtful = np.array([[4, 0, 4], [1, len(pool) - 1, 0]])
    table = replace(plain, captions_N=captions, match_N=chances, relabelled_N=relabelled, doubtful_2D=doubtful)
    write_negatives(tmp_path / "t.parquet", table, pool)
    written = pq.read_table(tmp_path / "t.parquet")
    assert written["caption_id"].to_pylist()[:2] == ["pool#7", "pool#2"]
    assert written["label"].to_pylist() == [*np.where(relabelled, 1, -1).tolist(), 0, 0, 0]
    assert written["caption_id"].to_pylist()[-2] == "pool#7" and written["rank"].to_pylist()[-3:] == [None] * 3
    again = read_negatives(tmp_path / "t.parquet", table.name, pool)
    for name, value in vars(table).items():
        assert np.array_equal(getattr(again, name), value), name
    with pytest.raises(ValueError, match="'pool#7', which the data does not have"):
        read_negatives(tmp_path / "t.parquet", table.name, CaptionPool(dataset))


def test_a_table_without_labels_is_all_negatives(small_world: SmallWorld, tmp_path: Path) -> None:
    pool = CaptionPool(load(small_world.manifest))
    table = made(pool.dataset.num_images, len(pool))
    write_negatives(tmp_path / "t.parquet", table, pool)
    pq.write_table(pq.read_table(tmp_path / "t.parquet").drop(["label"]), tmp_path / "old.parquet")
    again = read_negatives(tmp_path / "old.parquet", table.name, pool)
    assert again.relabelled_N is None and again.is_negative_N.all() and again.captions_N.tolist() == table.captions_N.tolist()

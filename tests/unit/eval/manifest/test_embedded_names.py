"""Embedded pictures that share an inner path: the row names those of different bytes; those of equal bytes are one picture."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.manifest import ManifestError, read_manifest
from rerank.answers.collection import read_collection

CASES = Path(__file__).parents[5] / "shared" / "cases" / "embedded_same_name"


def parquet(path: Path, contents: list[bytes], names: list[str], **columns: list[Any]) -> Path:
    images = [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)]
    pq.write_table(pa.table({"image": images, "caption": [f"text {n}" for n in range(len(images))]} | columns), path)
    return path


def test_rows_name_pictures_of_one_inner_path_and_different_bytes(tmp_path: Path) -> None:
    path = parquet(tmp_path / "m.parquet", [b"one", b"two", b"one", b"four", b"four"], ["x.png", "x.png", "x.png", "y.png", "y.png"])
    manifest = read_manifest(path)
    assert {image.id: image.captions for image in manifest.images} == {
        "row-0000001": ["text 0", "text 2"],
        "row-0000002": ["text 1"],
        "y.png": ["text 3", "text 4"],
    }
    dataset = load_split(manifest, None)
    assert [dataset.embedded_bytes(image) for image in range(3)] == [b"one", b"two", b"four"]
    assert manifest.counts.joined == 2


def test_several_tables_are_counted_on(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    parquet(tmp_path / "shards" / "0.parquet", [b"one"], ["x.png"])
    parquet(tmp_path / "shards" / "1.parquet", [b"two", b"six"], ["x.png", "z.png"])
    assert [image.id for image in read_manifest(tmp_path / "shards").images] == ["row-0000001", "row-0000002", "z.png"]


def test_a_name_in_two_splits_stays_a_name_of_each(tmp_path: Path) -> None:
    """As datasets often have it, 0.png in each: the ids of runs that are there do not change."""
    path = parquet(tmp_path / "m.parquet", [b"one", b"two"], ["0.png", "0.png"], split=["train", "test"])
    assert [(image.id, image.split) for image in read_manifest(path).images] == [("0.png", "train"), ("0.png", "test")]
    (tmp_path / "t.txt").write_text("a dog\n")
    for captions in (None, str(tmp_path / "t.txt")):
        found = read_collection(str(path), captions)
        assert list(found.image_ids) == ["row-0000001", "row-0000002"]
        assert [found.pictures.embedded_bytes(image) for image in range(2)] == [b"one", b"two"]
        assert list(read_collection(str(path), captions, split="test").image_ids) == ["0.png"]


def test_keys_of_a_saved_dataset_are_splits(tmp_path: Path) -> None:
    parts = {}
    for name in ("train", "test"):
        parts[name] = datasets.Dataset.from_dict({"image": [{"bytes": name.encode(), "path": "0.png"}], "caption": [name]})
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert [image.id for image in read_manifest(tmp_path / "saved").images] == ["0.png", "0.png"]


def test_an_id_given_twice_is_refused_with_its_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "m.parquet", [b"one", b"two"], ["x.png", "y.png"], id=["shop", "shop"], split=["train", "test"])
    (tmp_path / "t.txt").write_text("a dog\n")
    assert len(read_manifest(path).images) == 2, "one of each split"
    for captions in (None, str(tmp_path / "t.txt")):
        with pytest.raises(ManifestError, match=r"m.parquet row 2: 'shop' names another picture .*; give each picture an id of its own"):
            read_collection(str(path), captions)


@pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not there")
def test_the_shared_cases() -> None:
    for captions in (None, str(CASES / "two.txt")):
        found = read_collection(str(CASES / "same_inner_path.parquet"), captions)
        assert list(found.image_ids) == [f"row-{number:07d}" for number in range(1, 7)]
        with pytest.raises(UserError, match=r"id_not_unique.parquet row 2: 'shop-1' names another picture"):
            read_collection(str(CASES / "id_not_unique.parquet"), captions)
    assert len(read_manifest(CASES / "same_inner_path.parquet").images) == 6

"""No row is dropped or joined in silence, at any reader: rows given = images + rows joined + rows skipped, or each faulty row is named."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.manifest.manifest import ManifestError, RowRules, read_manifest
from rerank.answers.collection import read_collection
from rerank.answers.summary import reading_lines

COLUMNS = ("image", "caption", "split", "group")
PICTURES = ("a.jpg", "b.jpg", "sub/c.jpg", "sub/../b.jpg")
BAD_PICTURES = ("gone.jpg", "../out.jpg", "https://example.com/a.jpg", "")


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.with_suffix(".jsonl")


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path.with_suffix(".csv")


def write_parquet(path: Path, rows: list[dict[str, str]]) -> Path:
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in COLUMNS}), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def write_saved(path: Path, rows: list[dict[str, str]]) -> Path:
    datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in COLUMNS}).save_to_disk(str(path / "saved"))
    return path / "saved"


def write_folder(path: Path, rows: list[dict[str, str]]) -> Path:
    (path.parent / "metadata.jsonl").write_text("".join(json.dumps({"file_name": row.pop("image"), **row}) + "\n" for row in rows))
    return path.parent


@st.composite
def manifests(draw: st.DrawFn) -> list[dict[str, str]]:
    picture, caption = st.sampled_from(PICTURES + BAD_PICTURES), st.sampled_from(["a dog", "A dog.", "a cat", "...", "[a, b]"])
    split, group = st.sampled_from("xy"), st.sampled_from(["", "", "g"])
    row = st.fixed_dictionaries({"image": picture, "caption": caption, "split": split, "group": group})
    return draw(st.lists(row, min_size=1, max_size=8))


def expected(rows: list[dict[str, str]]) -> tuple[dict[tuple[str, str], list[str]], list[int]]:
    """(captions of each image by split and path, numbers of rows with a fault), by the rules of docs/data.md applied one by one."""
    images: dict[tuple[str, str], list[str]] = {}
    groups: dict[tuple[str, str], str] = {}
    faulty = []
    for number, row in enumerate(rows):
        path = "b.jpg" if row["image"] == "sub/../b.jpg" else row["image"]
        key = (row["split"], path)
        if path in BAD_PICTURES or row["caption"] == "...":
            faulty.append(number)
        if path not in BAD_PICTURES:
            if groups.setdefault(key, row["group"]) != row["group"]:
                faulty.append(number)
            images.setdefault(key, []).append(row["caption"])
    return images, sorted(set(faulty))


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet, write_saved, write_folder])
def test_every_row_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path, list[Any]], Path]) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(manifests())
    def check(rows: list[dict[str, str]]) -> None:
        root = tmp_path_factory.mktemp("rows")
        for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(name.encode())
        images, faulty = expected(rows)
        source = write(root / "m", [dict(row) for row in rows])
        if faulty:
            with pytest.raises(ManifestError) as caught:
                read_manifest(source, image_root=root)
            first = 2 if source.suffix == ".csv" else 1
            named = {int(fault.where.replace(":", " ").split()[-1]) - first for fault in caught.value.faults}
            assert named == set(faulty)
            return
        manifest = read_manifest(source, image_root=root)
        assert {(image.split, image.id): image.captions for image in manifest.images} == images
        counts = manifest.counts
        assert (counts.given, counts.joined, counts.skipped) == (len(rows), len(rows) - len(images), 0)
        told = [line for line in manifest.lines() if line.startswith("rows ")]
        joined = f"{len(rows) - len(images)} joined to an earlier row's image"
        assert told == ([f"rows      {len(rows)} in {source}: {len(images)} images, {joined}"] if len(images) < len(rows) else [])

    check()


def test_rows_of_missing_pictures_are_skipped_where_asked_and_faults_otherwise(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    rows = [
        {"image": "a.jpg", "caption": "one", "split": "x"},
        {"image": "gone.jpg", "caption": "...", "split": "x"},
        {"image": "b.jpg", "caption": "two", "split": "y"},
        {"image": "gone.jpg", "caption": "three", "split": "y", "id": "7"},
        {"image": "c.jpg", "caption": "four", "split": "y"},
    ]
    source = write_jsonl(tmp_path / "m", rows)
    with pytest.raises(ManifestError) as caught:
        read_manifest(source)
    assert [(fault.where.rpartition(":")[2], fault.kind) for fault in caught.value.faults] == [
        ("2", "empty caption"),
        ("2", "missing file"),
        ("4", "missing file"),
    ]
    manifest = read_manifest(source, rules=RowRules(skip_missing=True))
    assert [image.id for image in manifest.images] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [(row.where, row.image, row.reason, row.split) for row in manifest.skipped] == [
        (f"{source}:2", "gone.jpg", "missing file", "x"),
        (f"{source}:4", "7", "missing file", "y"),
    ]
    assert manifest.lines() == [f"rows      5 in {source}: 3 images, 2 rows skipped: 2 x missing file"]


def test_a_faulty_row_is_named_though_others_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = [("a.jpg", "."), ("a.jpg", "x"), ("gone.jpg", "y")]
    source = write_jsonl(tmp_path / "m", [{"image": image, "caption": caption} for image, caption in rows])
    with pytest.raises(ManifestError, match=r"m.jsonl:1: nothing is left of '\.'") as caught:
        read_manifest(source, rules=RowRules(skip_missing=True))
    assert [fault.kind for fault in caught.value.faults] == ["empty caption"]


def test_nothing_is_left_where_every_picture_is_missing(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "m", [{"image": "g.jpg", "caption": "."}, {"image": "h.jpg", "caption": "x"}])
    with pytest.raises(ManifestError, match="the picture of each of its 2 rows is missing"):
        read_manifest(source, rules=RowRules(skip_missing=True))


def test_rows_of_pictures_to_search_are_counted_too(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").write_bytes(b"x")
    (tmp_path / "two.txt").write_text("a dog\na cat\n")
    rows = [("a.jpg", "x"), ("a.jpg", "y"), ("b.jpg", "w"), ("gone.jpg", "z")]
    source = write_jsonl(tmp_path / "m", [{"image": image, "caption": caption} for image, caption in rows])
    for captions in (None, str(tmp_path / "two.txt")):
        with pytest.raises(ManifestError, match="1 x missing file"):
            read_collection(str(source), captions)
        found = read_collection(str(source), captions, skip_missing=True)
        assert list(found.image_ids) == ["a.jpg", "b.jpg"]
        assert [(row.where, row.image) for row in found.pictures.skipped_rows] == [(f"{source}:4", "gone.jpg")]
        told = [line.split(maxsplit=1)[1] for line in reading_lines(found, (), 2) if line.split()[0] in ("rows", "left")]
        assert told == ["1 of 4 joined to an earlier row's picture", "out   1 of 4 rows, whose picture is missing"]

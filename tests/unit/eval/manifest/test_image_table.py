"""A manifest is held as columns: few bytes a row, and no Python object a row."""

import gc
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from eval.dataset.leakage import find_leakage
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.manifest.image_table import ImageTable, ManifestImage
from eval.manifest.manifest import read_manifest

NUM_ROWS = 6_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 rows with a picture and a caption each."""
    root = tmp_path_factory.mktemp("many")
    (root / "images").mkdir()
    (root / "first.jpg").write_bytes(b"x")
    for number in range(NUM_ROWS):
        (root / "images" / f"{number:06d}.jpg").hardlink_to(root / "first.jpg")
    with (root / "m.jsonl").open("w") as file:
        for number in range(NUM_ROWS):
            caption = f"a photograph of one more thing, number {number}"
            row = {"image": f"images/{number:06d}.jpg", "caption": caption, "split": "ab"[number % 2]}
            file.write(json.dumps(row) + "\n")
    return root / "m.jsonl"


def counted() -> Counter[str]:
    """Objects by type."""
    gc.collect()
    return Counter(type(found).__name__ for found in gc.get_objects())


def test_a_row_holds_at_most_300_bytes_and_no_object(source: Path) -> None:
    load_split(read_manifest(source), "a")  # what is imported late
    before, arrow = counted(), pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        manifest = read_manifest(source)
        sets = [load_split(manifest, split) for split in "ab"]
        del manifest
        find_leakage(*sets)
        digests = [dataset.sha256() for dataset in sets]
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held += pa.total_allocated_bytes() - arrow
    assert sum(dataset.num_images for dataset in sets) == NUM_ROWS and digests[0] != digests[1]
    assert NUM_ROWS < held < 300 * NUM_ROWS
    assert most < 900 * NUM_ROWS, "while it is read"
    assert sum((counted() - before).values()) < NUM_ROWS / 20


def test_files_are_asked_about_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()
    monkeypatch.setattr("eval.manifest.paths.os.lstat", lambda path: asked.update([str(path)]) or source.stat())
    read_manifest(source)
    pictures = {name: count for name, count in asked.items() if name.endswith(".jpg")}
    assert len(pictures) == NUM_ROWS and set(pictures.values()) == {1}


def test_columns_hold_what_the_images_say() -> None:
    images = [
        ManifestImage("b", "x", Path("/p/b.jpg"), None, 3, "g", ["one", "two"], "m:1", {"size": [1.0, None]}, {"said": [["u"], []]}),
        ManifestImage("a", None, None, None, 5, None, ["three"], "m:2", {"size": ["s"]}, {"said": [["v", "w"]]}),
        ManifestImage("c", "x", Path("/p/c.jpg"), None, 9, "h", ["four"], "m:3", {"size": [True]}, {"said": [[]]}),
    ]
    table = ImageTable.of(images)
    assert list(table) == [images[1], images[0], images[2]] and table[-1] == images[2]
    assert table.caption_offsets.tolist() == [0, 1, 3, 4]
    assert table.split_counts == {None: 1, "x": 2}
    assert list(table.of_split("x")) == [images[0], images[2]] and list(table.of_split("y")) == []
    assert list(table.take(np.array([2, 1]))) == [images[2], images[0]]
    assert [image.split for image in table.with_splits(["t", None, "t"])] == ["t", None, "t"]
    with pytest.raises(IndexError):
        table[3]


def test_a_split_is_the_same_from_columns_and_from_images() -> None:
    images = [ManifestImage(f"i{n}", None, None, None, n, "ab"[n % 2] if n % 3 else None, [f"c{n}", "same"], f"m:{n}") for n in range(12)]
    one = RetrievalSet(images[::-1], None, source="made", split=None)
    other = RetrievalSet(ImageTable.of(images), None, source="made", split=None)
    assert one.sha256() == other.sha256() and list(one.caption_ids) == list(other.caption_ids)
    assert list(one.caption_ids)[:3] == ["i0#0", "i0#1", "i1#0"] and one.caption_ids[2] == "i1#0"
    assert one.group_names() == [image.group for image in sorted(images, key=lambda image: image.id)]
    # i0, i1, i10, i11, i2, ...: a group is numbered where it appears first, and an image without one is its own.
    assert one.group_I.tolist()[:5] == [0, 1, 2, 1, 2]

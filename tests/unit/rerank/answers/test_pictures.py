"""Images of a folder and of manifests: which are read, their ids, and what is refused."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.dataset.images import HEIF_REMEDY, ImageError
from eval.errors import UserError
from eval.manifest.manifest import ManifestError, read_manifest
from eval.manifest.names import OPTIONS, calling
from rerank.answers.collection import read_collection
from rerank.answers.pictures import is_picture_folder, read_folder, read_rows


def picture(path: Path, grey: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (grey, 0, 0)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in three folders, and files that must be skipped."""
    root = tmp_path / "photos"
    for number, name in enumerate(["b.png", "A.JPG", "deep/er/c.webp", "deep/b.png", "a b#?.jpeg"]):
        picture(root / name, 10 * number)
    for name in (".hidden.png", "._b.png", ".cache/d.png", "notes.txt", "list.TXT", "phone.heic", "README"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    picture(tmp_path / "elsewhere" / "e.png")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "linked.png").symlink_to(root / "b.png")
    return root


def test_a_folder_is_searched_with_all_below_it_and_the_rest_is_counted(folder: Path) -> None:
    found = read_folder(str(folder))
    assert list(found.image_ids) == ["A.JPG", "a b#?.jpeg", "b.png", "deep/b.png", "deep/er/c.webp", "linked.png"]
    assert [found.path(image) for image in range(6)] == [str(folder / name) for name in found.image_ids]
    counted = "3 hidden, 1 linked folder, 4 that are no pictures (2 .txt, 1 without a suffix, 1 .heic)"
    assert found.skipped.in_words() == f"{counted}, {HEIF_REMEDY}"
    assert [found.load_image(image).getpixel((0, 0))[0] for image in (2, 3)] == [0, 30]


def test_a_picture_that_is_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "deep" / "out.png").symlink_to(tmp_path / "elsewhere" / "e.png")
    with pytest.raises(UserError, match=r"photos: 1 pictures are links out of it, e.g. '.*deep/out.png' to '.*elsewhere/e.png'. Give"):
        read_folder(str(folder))


def test_heic_pictures_are_counted_and_named_with_what_to_do(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpe", "c.pgm"):
        Image.new("RGB", (8, 8)).convert("L" if name == "c.pgm" else "RGB").save(tmp_path / name)
    (tmp_path / "d.heic").write_bytes(b"\0\0\0\x18ftypheic")
    found = read_folder(str(tmp_path))
    assert list(found.image_ids) == ["a.png", "b.jpe", "c.pgm"]
    assert found.skipped.in_words() == f"1 that are no pictures (1 .heic), {HEIF_REMEDY}"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it is empty"),
        (["notes.txt", ".a.png"], r"found 1 hidden, 1 that are no pictures \(1 .txt\). Give the folder that holds the pictures"),
        (["part.parquet"], r"to read pictures out of those, give --images 'FOLDER/\*.parquet'"),
    ],
)
def test_a_folder_without_pictures_is_refused_with_what_was_found(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        read_folder(str(tmp_path))


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    os.rename(tmp_path / "good.png", os.fsencode(tmp_path) + b"/b\xe4d.png")
    with pytest.raises(UserError, match=r"names of 1 pictures are not UTF-8, e.g. 'b\\udce4d.png': rename"):
        read_folder(str(tmp_path))


def test_what_does_not_decode_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found = read_folder(str(tmp_path))
    with pytest.raises(ImageError, match=r"bad\.png: cannot be decoded"):
        found.load_image(0)


def test_some_are_removed_and_the_rest_stay_in_order(folder: Path) -> None:
    found = read_folder(str(folder)).without(np.array([0, 3]))
    assert list(found.image_ids) == ["a b#?.jpeg", "b.png", "deep/er/c.webp", "linked.png"]
    assert found.load_image(2).getpixel((0, 0))[0] in range(18, 23) and found.skipped.num_hidden == 3


def test_rows_of_a_manifest_without_captions(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "b.png"), picture(tmp_path / "x" / "a.png")
    rows = [("b.png", "two", "test"), ("a.png", "", "test"), ("b.png", "two", "test"), ("a.png", "", "train")]
    lines = [json.dumps({"file": name, "name": own, "split": split}) for name, own, split in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    columns = {"image": "file", "id": "name"}
    found = read_rows(str(tmp_path / "list.jsonl"), image_root=str(tmp_path / "x"), columns=columns, split="test")
    assert list(found.image_ids) == ["a.png", "two"] and found.path(1) == str(tmp_path / "x" / "b.png")
    with pytest.raises(ManifestError, match="no row has split 'val'; leave --split out"):
        read_rows(str(tmp_path / "list.jsonl"), image_root=str(tmp_path / "x"), columns=columns, split="val")


def test_embedded_pictures_are_read_out_of_the_table(tmp_path: Path) -> None:
    buffers = []
    for grey in (10, 20):
        buffer = io.BytesIO()
        Image.new("RGB", (3, 3), (grey, 0, 0)).save(buffer, "PNG")
        buffers.append(buffer.getvalue())
    pq.write_table(pa.table({"image": [*buffers, b"no picture"], "id": ["z", "a", "m"]}), tmp_path / "p.parquet")
    found = read_rows(str(tmp_path / "p.parquet"), columns={})
    assert list(found.image_ids) == ["a", "m", "z"] and found.path(0) == ""
    assert [found.load_image(image).getpixel((0, 0))[0] for image in (0, 2)] == [20, 10]
    assert found.without(np.array([1])).load_image(1).getpixel((0, 0))[0] == 10
    with pytest.raises(ImageError, match=r"p\.parquet image 'm'"):
        found.load_image(1)


def test_every_fault_of_a_manifest_is_named_at_once(tmp_path: Path) -> None:
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    (tmp_path / "list.csv").write_text("image,id\na.png,one\nmissing.png,\nhttp://x/y.png,\nb.png,one\n")
    with pytest.raises(ManifestError) as caught, calling(OPTIONS):
        read_rows(str(tmp_path / "list.csv"), columns={})
    assert sorted(fault.kind for fault in caught.value.faults) == ["URL", "id twice", "missing file"]
    assert "--image-root" in str(caught.value) and "list.csv:5" in str(caught.value)
    told = r"no column 'photo'; columns found: \['image', 'id'\]. Name the right one: --column image=NAME"
    with pytest.raises(ManifestError, match=told), calling(OPTIONS):
        read_rows(str(tmp_path / "list.csv"), columns={"image": "photo"})


def test_a_split_that_is_a_number_is_that_number(tmp_path: Path) -> None:
    rows = [{"image": f"{name}.png", "split": split} for name, split in (("a", 1), ("b", "1"), ("c", 2), ("d", None))]
    for row in rows[:3]:
        picture(tmp_path / row["image"])
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_rows(str(tmp_path / "m.jsonl"), columns={}, split="1")
    assert list(found.image_ids) == ["a.png", "b.png"] and [found.split(image) for image in (0, 1)] == ["1", "1"]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"image": "a.png", "split": True}])))
    with pytest.raises(ManifestError, match=r"m\.jsonl:5: expected text, found bool: True"):
        read_rows(str(tmp_path / "m.jsonl"), columns={}, split="1")


def test_what_is_left_out_has_its_split(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    rows = [{"image": f"{name}.png", "split": split, "caption": name} for name, split in zip("abc", (1, 1, 2), strict=True)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.txt").write_text("a dog\n")
    for captions in (str(tmp_path / "c.txt"), None):
        found = read_collection(str(tmp_path / "m.jsonl"), captions, skip_missing=True)
        assert [(one.image, one.split) for one in found.pictures.skipped_rows] == [("c.png", "2")]
        assert (found.pictures.counts.given, found.pictures.counts.joined) == (3, 0)
        assert (found.skipped(1).image, found.skipped(1).split) == ("b.png", "1")


def test_a_picture_of_two_splits_is_there_once_and_its_rows_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"image": "a.png", "split": split}) for split in ("train", "test", "test")))
    found = read_rows(str(tmp_path / "m.jsonl"), columns={})
    assert (list(found.image_ids), found.counts.given, found.counts.joined) == (["a.png"], 3, 2)


def test_ids_are_those_that_an_evaluation_takes(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    rows = [("a", "one"), ("a", "two"), ("b", True), ("c", 1.5), ("d", ["x"])]
    lines = [json.dumps({"image": f"{name}.png", "id": own, "caption": "a dog"}) for name, own in rows]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    kinds = []
    for read in (lambda path: read_rows(path, columns={}), read_manifest):
        with pytest.raises(ManifestError) as caught:
            read(str(tmp_path / "m.jsonl"))
        kinds.append(sorted(fault.kind for fault in caught.value.faults))
    assert kinds[0] == kinds[1] == ["id is not text"] * 3 + ["two ids"]


def test_a_saved_dataset_is_no_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").touch()
    assert not is_picture_folder(str(tmp_path)) and not is_picture_folder(str(tmp_path / "nothing"))
    (tmp_path / "dataset_dict.json").unlink()
    assert is_picture_folder(str(tmp_path))

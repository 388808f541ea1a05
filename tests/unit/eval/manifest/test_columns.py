"""Columns that have another usual name are taken, and it is told; where several could be it, the person is asked."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.manifest.columns import CAPTION_NAMES, IMAGE_NAMES, map_columns
from eval.manifest.manifest import ManifestError, read_manifest
from eval.manifest.names import OPTIONS, calling

KINDS = ["jsonl", "csv", "parquet", "saved"]


def write(folder: Path, kind: str, **columns: list[Any]) -> Path:
    (folder / "a.jpg").write_bytes(b"x")
    path = folder / f"m.{kind}"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        path.write_text("\n".join(",".join(map(str, row)) for row in [list(columns), *(row.values() for row in rows)]))
    elif kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("caption", CAPTION_NAMES)
def test_text_and_title_are_captions_where_no_other_column_is(tmp_path: Path, kind: str, caption: str) -> None:
    source = write(tmp_path, kind, filename=["a.jpg"], **{caption: ["a dog"]})
    manifest = read_manifest(source, image_root=tmp_path)
    assert [(image.id, image.captions) for image in manifest.images] == [("a.jpg", ["a dog"])]
    assert manifest.lines() == ["columns   images from column 'filename'", f"columns   captions from column {caption!r}"]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_our_own_names_and_mapped_ones_come_first(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, kind, image=["a.jpg"], path=["b.jpg"], caption=["a dog"], text=["no"], title=["neither"])
    manifest = read_manifest(source, image_root=tmp_path)
    assert [image.captions for image in manifest.images] == [["a dog"]] and manifest.lines() == []
    mapped = read_manifest(source, image_root=tmp_path, columns={"caption": "title"})
    assert [image.captions for image in mapped.images] == [["neither"]] and mapped.lines() == []


def test_of_two_captions_it_is_told_which_is_read() -> None:
    found = map_columns(["image", "title", "text"], {})
    assert found.names["caption"] == "text" and found.notes == ["captions from column 'text', not from 'title'"]
    assert map_columns(["image", "title", "text"], {"group": "text"}).names["caption"] == "title"


def test_of_two_columns_of_images_none_is_guessed(tmp_path: Path) -> None:
    source = write(tmp_path, "csv", path=["a.jpg"], filename=["a.jpg"], caption=["a dog"])
    with pytest.raises(ManifestError, match="'filename' and 'path' could be it. Name the right one: data.columns.image=NAME"):
        read_manifest(source)
    with calling(OPTIONS), pytest.raises(ManifestError, match="'filename' and 'path' could be it. Name the right one: --column image=NAME"):
        read_manifest(source)
    assert [image.id for image in read_manifest(source, columns={"image": "path"}).images] == ["a.jpg"]


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_every_usual_name_of_a_column_of_images(name: str) -> None:
    found = map_columns([name, "caption"], {})
    assert found.names["image"] == name and found.notes == [f"images from column {name!r}"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_of_texts_has_to_be_text(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, kind, image=["a.jpg", "a.jpg"], text=[3, 4])
    with pytest.raises(ManifestError, match="2 x caption is not text"):
        read_manifest(source)


@pytest.mark.parametrize("kind", KINDS)
def test_one_column_of_pictures_and_one_of_sentences_are_taken(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, kind, foto=["a.jpg"], words=["a dog runs"], who=["Ann"])
    manifest = read_manifest(source, image_root=tmp_path)
    assert [(image.id, image.captions) for image in manifest.images] == [("a.jpg", ["a dog runs"])]
    assert manifest.lines() == [
        "columns   images from column 'foto', the only one of pictures",
        "columns   captions from column 'words', the only one of sentences; another: data.columns.caption=NAME",
    ]


def test_of_two_columns_of_sentences_none_is_taken(tmp_path: Path) -> None:
    source = write(tmp_path, "csv", image=["a.jpg"], words=["a dog runs"], notes=["seen in June"])
    with pytest.raises(ManifestError, match="no column 'caption' or 'captions'; columns found"):
        read_manifest(source)
    assert [image.captions for image in read_manifest(source, columns={"caption": "notes"}).images] == [["seen in June"]]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_of_the_column_asked_for_alone(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, kind, image=["a.jpg"], captions=["machine"], caption=["one"], alt=["human"])
    for asked, captions in (({"caption": "alt"}, ["human"]), ({"captions": "alt"}, ["human"]), ({"caption": "caption"}, ["one"])):
        manifest = read_manifest(source, image_root=tmp_path, columns=asked)
        assert [image.captions for image in manifest.images] == [captions] and manifest.lines() == []


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_row_with_caption_and_captions_it_is_told_which_is_read(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, kind, image=["a.jpg"], captions=["machine"], caption=["one"])
    manifest = read_manifest(source, image_root=tmp_path)
    assert [image.captions for image in manifest.images] == [["machine"]]
    assert manifest.lines() == ["columns   captions from column 'captions', not from 'caption', of 1 row with both"]


def test_captions_of_coco_are_its_annotations(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    images = [{"id": 1, "file_name": "a.jpg", "captions": ["of the image"]}]
    (tmp_path / "m.json").write_text(json.dumps({"images": images, "annotations": [{"image_id": 1, "caption": "a dog"}]}))
    assert [image.captions for image in read_manifest(tmp_path / "m.json").images] == [["a dog"]]


def test_a_few_missing_pictures_are_told_with_the_key_that_leaves_them_out(tmp_path: Path) -> None:
    source = write(tmp_path, "csv", image=["a.jpg", "b.jpg", "c.jpg"], caption=["a", "b", "c"])
    (tmp_path / "c.jpg").write_bytes(b"y")
    with pytest.raises(ManifestError) as caught, calling(OPTIONS):
        read_manifest(source)
    assert "does not exist or is no file. To leave out the rows of the 1 picture(s) that are missing: --skip-missing" in str(caught.value)
    assert "right?" not in str(caught.value)
    with pytest.raises(ManifestError, match="maps caption to 'captoin', which is not there .did you mean 'caption'"):
        read_manifest(source, columns={"caption": "captoin"})

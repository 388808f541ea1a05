"""eval/choices/choice_set.py: both kinds of rows, and every fault at once with its place."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.choices.choice_set import ChoiceExample, read_choices
from eval.dataset.images import ImageError
from eval.errors import UserError
from eval.manifest.manifest import ManifestError


def picture(level: int, width: int = 8, height: int = 6) -> bytes:
    """A PNG whose pixel (x, y) is (x, y, level)."""
    y, x = np.mgrid[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x, y, np.full_like(x, level)], axis=2).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        (tmp_path / name).write_bytes(picture(number))
    return tmp_path


def write(folder: Path, *rows: object) -> Path:
    path = folder / "choices.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


CHOICE = {"image": "a.png", "caption": "a dog on a cat", "false_captions": ["a cat on a dog", "two dogs"]}
PAIR = {"images": ["a.png", "b.png"], "captions": ["a dog on a cat", "a cat on a dog"]}


def test_both_kinds_in_one_file_hold_each_picture_and_text_once(folder: Path) -> None:
    choices = read_choices(write(folder, CHOICE | {"category": "order", "id": 7}, PAIR))
    assert choices.image_ids == ["a.png", "b.png"]
    assert list(choices.captions) == ["a dog on a cat", "a cat on a dog", "two dogs"]
    assert list(choices.examples) == [
        ChoiceExample("7", "choice", "order", (0,), (0, 1, 2)),
        ChoiceExample("row-000002", "pair", None, (0, 1), (0, 1)),
    ]
    images_N, captions_N = choices.pairs()
    assert list(zip(images_N, captions_N, strict=True)) == [(0, 0), (0, 1), (0, 2), (0, 0), (0, 1), (1, 0), (1, 1)]
    first, second = choices.scores_by_example(np.arange(7.0))
    assert first.tolist() == [[0, 1, 2]] and second.tolist() == [[3, 4], [5, 6]]
    with pytest.raises(ValueError, match="cannot reshape array"):
        choices.scores_by_example(np.arange(6.0))


def test_every_fault_is_named_at_once_with_its_line(folder: Path) -> None:
    path = write(
        folder,
        CHOICE | {"id": "x"},
        CHOICE | {"id": "x"},
        "{half a row",
        CHOICE | {"image": "http://host/a.png"},
        CHOICE | {"image": "../a.png"},
        CHOICE | {"image": "none.png"},
        CHOICE | {"false_captions": []},
        CHOICE | {"false_captions": "a cat on a dog"},
        CHOICE | {"false_captions": ["a dog on a cat"]},
        CHOICE | {"caption": "..."},
        CHOICE | {"box": [0, 0, 0, 5]},
        CHOICE | {"captions": ["one", "two"]},
        PAIR | {"images": ["a.png"]},
        PAIR | {"images": ["a.png", "a.png"]},
        PAIR | {"captions": ["same", "same"]},
        PAIR | {"box": [0, 0, 1, 1]},
        {"image": "a.png", "captions": ["a true caption"]},
        PAIR | {"category": ["list"]},
    )
    with pytest.raises(ManifestError) as caught:
        read_choices(path)
    found = {(int(fault.where.rpartition(":")[2]), fault.kind) for fault in caught.value.faults}
    assert found == {
        (2, "id twice"),
        (3, "unreadable row"),
        (4, "URL"),
        (5, "path outside the image root"),
        (6, "missing file"),
        (7, "wrong false_captions"),
        (8, "wrong false_captions"),
        (9, "one caption twice"),
        (10, "empty caption"),
        (11, "wrong box"),
        (12, "no known form"),
        (13, "wrong images"),
        (14, "one picture twice"),
        (15, "one caption twice"),
        (16, "wrong box"),
        (17, "no known form"),
        (18, "category is not text"),
    }


def test_captions_that_differ_in_a_mark_alone_are_a_question(folder: Path) -> None:
    choices = read_choices(write(folder, CHOICE | {"false_captions": ["a dog, on a cat"]}))
    assert len(choices.captions) == 2, "SigLIP reads them alike, and a tie is wrong: an answer of the model, not a fault of the data"


def test_parquet_embeds_and_one_name_may_stand_for_two_pictures(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": picture(1), "path": "x.png"}, "caption": "one", "false_captions": ["two"]},
        {"image": {"bytes": picture(2), "path": "x.png"}, "caption": "one", "false_captions": ["two"]},
        {"images": [{"bytes": picture(1), "path": "x.png"}, {"bytes": picture(3), "path": None}], "captions": ["one", "two"]},
    ]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", struct), ("caption", pa.string()), ("false_captions", pa.list_(pa.string()))])
    schema = schema.append(pa.field("images", pa.list_(struct))).append(pa.field("captions", pa.list_(pa.string())))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "set.parquet")
    choices = read_choices(tmp_path / "set.parquet")
    assert choices.num_images == 3 and [example.images for example in choices.examples] == [(0,), (1,), (0, 2)]
    assert [choices.load_image(number).getpixel((0, 0))[2] for number in range(3)] == [1, 2, 3]
    assert choices.images[0].key.startswith("x.png#") and choices.images[2].key.startswith("#")


def test_a_box_is_the_part_that_is_seen(folder: Path) -> None:
    boxes = ([2, 1, 3, 4], [6, 4, 10, 10], None)
    choices = read_choices(write(folder, *(CHOICE | {"box": box} for box in boxes)))
    part, over, whole = (choices.load_image(number) for number in range(3))
    assert part.size == (3, 4) and part.getpixel((0, 0)) == (2, 1, 0) and part.getpixel((2, 3)) == (4, 4, 0)
    assert over.size == (10, 10) and over.getpixel((1, 1)) == (7, 5, 0) and over.getpixel((2, 2)) == (0, 0, 0)
    assert whole.size == (8, 6)
    assert choices.image_ids == ["a.png[2,1,3,4]", "a.png[6,4,10,10]", "a.png"]
    assert {picture.key for picture in choices.images} == {"a.png"}, "parts of one picture are drawn together"


@pytest.mark.parametrize(
    "box", [[0, 0, 1e9, 1e9], [0, 0, 1e300, 1], [0, 0, -1, 5], [0, 0, 0, 5], [-9, 0, 3, 3], [2**31, 0, 1, 1], [0, float("nan"), 1, 1]]
)
def test_a_box_that_no_picture_can_have_is_refused_when_the_set_is_read(folder: Path, box: list[float]) -> None:
    with pytest.raises(ManifestError, match="box: expected"):
        read_choices(write(folder, CHOICE | {"box": box}))


def test_a_box_is_held_against_the_upright_picture_and_the_header_alone(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 60 x 80 pixels upright
    Image.effect_noise((80, 60), 50).save(folder / "a.png", "JPEG", exif=exif)
    with (folder / "a.png").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 900)
    choices = read_choices(write(folder, CHOICE | {"box": [0, 60, 2, 2]}))
    with pytest.raises(ImageError, match="truncated"):
        choices.load_image(0)
    with pytest.raises(ManifestError, match="outside the 60 x 80 pixels"):
        read_choices(write(folder, CHOICE | {"box": [60, 0, 2, 2]}))


def test_a_box_beside_the_picture_is_an_error(folder: Path) -> None:
    with pytest.raises(ManifestError, match=r"a\.png\[8,0,2,2\]: the box lies outside the 8 x 6 pixels"):
        read_choices(write(folder, CHOICE | {"box": [8, 0, 2, 2]}))
    choices = read_choices(write(folder, CHOICE | {"box": [7, 0, 2, 2]}))
    Image.new("RGB", (6, 6)).save(folder / "a.png")  # another picture since
    with pytest.raises(ImageError, match=r"a\.png\[7,0,2,2\]: the box lies outside the 6 x 6 pixels"):
        choices.load_image(0)


def test_a_damaged_embedded_picture_is_named(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": picture(1)[:40], "path": "x.png"}, "caption": "one", "false_captions": ["two"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    with pytest.raises(ImageError, match=r"x\.png#"):
        read_choices(tmp_path / "set.parquet").load_image(0)


def test_the_image_root_and_sources_that_are_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "elsewhere", CHOICE)
    assert read_choices(path, image_root=folder).num_images == 1
    with pytest.raises(ManifestError, match="missing file"):
        read_choices(path)
    for name, message in (("none.jsonl", "cannot be read"), ("none.parquet", "cannot be read"), ("set.csv", "is .jsonl or .parquet")):
        with pytest.raises(UserError, match=message):
            read_choices(folder / name)
    with pytest.raises(ManifestError, match="has no rows"):
        read_choices(write(folder))


def test_the_hash_sees_every_change(folder: Path) -> None:
    rows = [CHOICE, CHOICE | {"image": "b.png"}, CHOICE | {"box": [0, 0, 2, 2]}, CHOICE | {"id": "z"}, CHOICE | {"category": "z"}]
    rows += [CHOICE | {"caption": "a dog"}, CHOICE | {"false_captions": ["two dogs", "a cat on a dog"]}, PAIR]
    assert len({read_choices(write(folder, row)).sha256() for row in rows}) == len(rows)

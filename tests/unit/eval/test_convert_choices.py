"""eval/convert_choices.py: the published layouts, in small, and what is no such layout."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.choices.choice_set import ChoiceSet, read_choices
from eval.convert_choices import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("000000000001.jpg", "000000000002.jpg", "ex_0_img_0.png", "ex_0_img_1.png"):
        Image.new("RGB", (40, 30), (len(name), 2, 3)).save(tmp_path / "images" / name)
    return tmp_path


def converted(folder: Path, layout: str, source: Path) -> ChoiceSet:
    output = folder / f"{layout}.jsonl"
    arguments = ["--layout", layout, "--source", str(source), "--images", str(folder / "images"), "--output", str(output)]
    assert main(arguments) == 0
    return read_choices(output)


def refused(folder: Path, layout: str, source: Path, capsys: pytest.CaptureFixture[str], output: str = "out.jsonl") -> str:
    arguments = ["--layout", layout, "--source", str(source), "--images", str(folder / "images"), "--output", str(folder / output)]
    assert main(arguments) == 2
    return capsys.readouterr().err


def write(path: Path, record: Any) -> Path:
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def said(choices: ChoiceSet, number: int) -> list[str]:
    return [choices.captions[caption] for caption in choices.examples[number].captions]


def test_sugarcrepe(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    one = {"filename": "000000000001.jpg", "caption": "A man and a kite.", "negative_caption": "A kite and a man."}
    write(data / "swap_obj.json", {"0": one, "7": one | {"filename": "000000000002.jpg", "caption": "Two cats."}})
    write(data / "add_att.json", {"0": one})
    choices = converted(folder, "sugarcrepe", data)
    assert [(e.id, e.category) for e in choices.examples] == [
        ("add_att-0", "add_att"),
        ("swap_obj-0", "swap_obj"),
        ("swap_obj-7", "swap_obj"),
    ]
    assert said(choices, 2) == ["Two cats.", "A kite and a man."] and choices.image_ids[1] == "images/000000000002.jpg"
    assert len(converted(folder, "sugarcrepe", data / "swap_obj.json").examples) == 2


def test_winoground(folder: Path) -> None:
    row = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "an old person kisses a young person"}
    row |= {"caption_1": "a young person kisses an old person", "tag": "Adjective-Age", "collapsed_tag": "Object", "num_main_preds": 1}
    source = folder / "examples.jsonl"
    source.write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": 1, "collapsed_tag": ""}) + "\n")
    choices = converted(folder, "winoground", source)
    assert [(e.id, e.kind, e.category) for e in choices.examples] == [("0", "pair", "Object"), ("1", "pair", "Adjective-Age")]
    assert choices.image_ids == ["images/ex_0_img_0.png", "images/ex_0_img_1.png"]
    assert said(choices, 0) == [row["caption_0"], row["caption_1"]]
    assert len(converted(folder, "winoground", folder).examples) == 2, "the folder it is unpacked to"


def test_aro_relation_and_attribution(folder: Path) -> None:
    item = {"image_path": "000000000001.jpg", "bbox_x": 3, "bbox_y": 4, "bbox_w": 20, "bbox_h": 10}
    item |= {"true_caption": "the dog is on the bed", "false_caption": "the bed is on the dog"}
    source = write(folder / "visual_genome_relation.json", [item | {"relation_name": "on"}])
    choices = converted(folder, "aro", source)
    assert choices.examples[0].category == "on" and choices.images[0].box == (3, 4, 20, 10)
    assert choices.load_image(0).size == (20, 10) and said(choices, 0) == [item["true_caption"], item["false_caption"]]
    source = write(folder / "visual_genome_attribution.json", [item | {"attributes": ["white", "black"]}])
    assert converted(folder, "aro", source).examples[0].category == "white_black"


def test_order_sets_are_refused_with_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(folder / "coco_karpathy_test.json", [{"image": "val2014/x.jpg", "caption": ["one", "two"]}])
    assert "true captions only" in refused(folder, "aro", source, capsys)


@pytest.mark.parametrize(
    ("layout", "record", "message"),
    [
        ("sugarcrepe", [], "expected {number: {filename, caption, negative_caption}}, found a list"),
        ("sugarcrepe", {"0": {"filename": "x.jpg", "caption": "a"}, "1": 3}, "2 fault(s): 2 x not of this layout"),
        ("sugarcrepe", {"0": {"filename": "none.jpg", "caption": "a", "negative_caption": "b"}}, "none.jpg' does not exist"),
        ("aro", {}, "expected ARO's list of test cases, found a dict"),
        ("aro", [{"image_path": "000000000001.jpg"}], "item 0: ['true_caption', 'false_caption', 'bbox_x'"),
        ("winoground", {"image_0": "a"}, "['image_1', 'caption_0', 'caption_1'] are missing"),
    ],
)
def test_another_layout_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], layout: str, record: Any, message: str) -> None:
    errors = refused(folder, layout, write(folder / "file.json", record), capsys)
    assert message in errors and "Traceback" not in errors


def test_a_number_that_is_there_twice_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = '{"filename": "000000000001.jpg", "caption": "a", "negative_caption": "b"}'
    (folder / "swap_obj.json").write_text(f'{{"0": {one}, "0": {one}}}')
    assert "cannot be read as JSON (the key '0' is there twice)" in refused(folder, "sugarcrepe", folder / "swap_obj.json", capsys)


def test_pictures_must_lie_below_the_choice_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "elsewhere").mkdir()
    source = write(folder / "swap_obj.json", {"0": {"filename": "000000000001.jpg", "caption": "a", "negative_caption": "b"}})
    assert f"write it to {folder / 'out.jsonl'}" in refused(folder, "sugarcrepe", source, capsys, "elsewhere/out.jsonl")
    assert "written as .jsonl" in refused(folder, "sugarcrepe", source, capsys, "out.parquet")
    assert "cannot be read" in refused(folder, "sugarcrepe", folder / "none.json", capsys)

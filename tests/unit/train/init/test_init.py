"""train/init: columns by their content, groups that suggest themselves, and a configuration that the reader of configurations takes."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from eval.errors import UserError
from eval.manifest.columns import guess_columns
from train.config.load import load_config
from train.init.__main__ import main
from train.init.groups import suggest_groups
from train.init.survey import survey
from train.init.write import configuration


def photos(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (9, 9), (number * 7 % 256, 90, 30)).save(folder / name)
    return folder


@pytest.fixture
def spreadsheet(tmp_path: Path) -> Path:
    """A CSV as a spreadsheet writes it, 30 pictures, other names, no split."""
    photos(tmp_path / "photos", [f"IMG_{n}.jpg" for n in range(30)])
    rows = ["foto,words,who"] + [f'IMG_{n}.jpg,"picture {n}, as it was",{"Ann" if n % 2 else "Bob"}' for n in range(30)]
    path = tmp_path / "my captions.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode() + b"\r\n")
    return path


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"image": "a.jpg", "caption": "a dog runs"}, {}),
        ({"foto": "a.jpg", "words": "a dog runs"}, {"image": "foto", "caption": "words"}),
        ({"url": "a.jpg", "texts": '["a dog", "it runs"]', "part": "train"}, {"image": "url", "captions": "texts", "split": "part"}),
        ({"n": "3", "img": {"bytes": b"1", "path": None}, "says": "two words"}, {"image": "img", "caption": "says"}),
        ({"n": "3", "m": "word"}, {}),
        ({"url": "http://there/a.jpg", "says": "two words"}, {"caption": "says"}),
    ],
    ids=["ours", "others", "lists-and-split", "embedded", "nothing", "address"],
)
def test_columns_are_known_by_their_content(record: dict[str, object], expected: dict[str, str]) -> None:
    assert guess_columns(list(record), [record] * 3) == expected


def test_groups_suggest_themselves() -> None:
    shoes = [{"image": f"shoe{n // 3}_{n % 3}.jpg", "caption": f"c{n}", "sku": f"s{n // 3}", "who": "Ann", "no": n} for n in range(30)]
    first, second = suggest_groups(shoes, "image", ["image", "caption"])
    assert first == "column 'sku': 10 values over 30 pictures"
    assert second.startswith("names that differ in their last number alone") and ": 10 such names" in second
    single = [{"image": f"IMG_{n}.jpg", "caption": f"c{n}"} for n in range(300)]
    assert suggest_groups(single, "image", ["image", "caption"]) == []  # one name for all groups nothing


def test_a_spreadsheet_without_splits_becomes_a_configuration_that_is_taken(
    spreadsheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(spreadsheet.name), "--image-root", "photos"]) == 0
    said = capsys.readouterr().out
    assert "30 images, 30 captions" in said and "image from 'foto', caption from 'words'" in said and "30 tried, 0 do not decode" in said
    config = load_config("my-captions.yaml")
    assert config.name == "my-captions" and config.data.source == str(spreadsheet) and config.data.image_root == str(tmp_path / "photos")
    assert config.data.columns == {"image": "foto", "caption": "words"} and config.data.split is not None
    assert config.train.batch_size == 16 and config.mining is None
    assert main([str(spreadsheet.name), "--image-root", "photos"]) == 2
    assert "my-captions.yaml is there already" in capsys.readouterr().err
    (tmp_path / "runs" / "my-captions").mkdir(parents=True)
    monkeypatch.setattr("train.init.__main__.RUNS", tmp_path / "runs")
    assert main([str(spreadsheet.name), "--image-root", "photos", "--output", "again.yaml"]) == 0
    assert load_config("again.yaml").name == "my-captions-2"  # the run that is there has another configuration


def test_splits_of_other_names_are_named_and_the_rest_is_null(tmp_path: Path) -> None:
    photos(tmp_path, [f"{n}.png" for n in range(6)])
    rows = [{"image": f"{n}.png", "caption": f"number {n}", "split": "training" if n < 4 else "dev"} for n in range(6)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = yaml.safe_load(configuration(survey(str(path), image_root=None, columns={}), "pairs", None, "base"))["data"]
    assert (data["train_split"], data["val_split"], data["test_split"]) == ("training", "dev", None)


def test_repeated_texts_and_broken_pictures_are_said(tmp_path: Path) -> None:
    photos(tmp_path, [f"{n}.png" for n in range(12)])
    (tmp_path / "3.png").write_bytes(b"\x89PNG none")
    rows = [{"image": f"{n}.png", "caption": f"class {n % 3}"} for n in (*range(12), 99, 99)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = survey(str(path), image_root=None, columns={})
    assert found.repeats_texts and found.num_texts == 3 and len(found.broken) == 1
    assert "texts     3 different ones among 12 captions" in found.lines()
    text = configuration(found, "pairs", None, "base")
    assert "gallery: different" in text and "skip_broken: true" in text and "skip_missing: true" in text
    assert "missing   1 picture(s), e.g. 99.png" in found.lines()


def test_what_cannot_be_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        survey(str(tmp_path / "none.csv"), image_root=None, columns={})
    with pytest.raises(SystemExit):
        main(["data.csv", "--column", "title"])
    assert "--column takes OURS=THEIRS" in capsys.readouterr().err

"""Pictures that do not decode are found before an evaluation, and left out of it with their captions where that is asked."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from eval.__main__ import parse, run
from eval.dataset.broken import find_broken, without_broken
from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.execution import Execution
from eval.manifest.manifest import Manifest, read_manifest
from eval.manifest.skipped import Skipped, write_skipped
from eval.processes import Processes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six pictures, three of each split; the second of each is broken."""
    rows = []
    for number in range(6):
        name = f"{number}.png"
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / name)
        rows.append({"image": name, "captions": [f"a red {number}", f"a blue {number}"], "split": "val" if number < 3 else "test"})
    for number in (1, 4):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes()[:40])
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(manifest: Manifest) -> list[str]:
    return [image.id for image in manifest.images]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_picture_is_tried(source: Path, num_workers: int) -> None:
    found = find_broken(load_split(read_manifest(source), "val"), "val", Execution(num_workers=num_workers))
    assert list(found) == [1] and "1.png: cannot be decoded" in found[1]


def test_an_image_is_left_out_with_its_captions_of_the_splits_asked_for(source: Path) -> None:
    manifest = without_broken(read_manifest(source), ["val"])
    assert ids(manifest) == ["0.png", "2.png", "3.png", "4.png", "5.png"]
    assert [(one.where, one.image, one.split) for one in manifest.skipped] == [(str(source.parent / "1.png"), "1.png", "val")]
    assert list(load_split(manifest, "val").captions) == ["a red 0", "a blue 0", "a red 2", "a blue 2"]


def test_a_split_without_one_picture_is_refused(source: Path) -> None:
    for number in (0, 2):
        (source.parent / f"{number}.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"\(split 'val'\): not one of its 3 pictures decodes, e.g. .*0\.png: cannot be decoded"):
        without_broken(read_manifest(source), ["val"])


def test_what_was_left_out_is_listed_and_an_earlier_list_goes(tmp_path: Path) -> None:
    write_skipped(tmp_path / "skipped.jsonl", [Skipped("a.png", "ä", "broken", None)])
    expected = {"where": "a.png", "image": "ä", "reason": "broken", "split": None}
    assert json.loads((tmp_path / "skipped.jsonl").read_text("utf-8")) == expected
    write_skipped(tmp_path / "skipped.jsonl", [])
    assert not (tmp_path / "skipped.jsonl").exists()


def test_eval_refuses_a_broken_picture_with_the_option_or_leaves_it_out(source: Path, tiny_siglip: Path, tmp_path: Path) -> None:
    asked = ["--model", str(tiny_siglip), "--data", str(source), "--split", "test", "--output", str(tmp_path / "out"), "--num-workers", "0"]
    with pytest.raises(UserError, match=r"4\.png: cannot be decoded(.|\n)*--skip-broken"):
        run(parse(asked), Processes(), torch.device("cpu"))
    run(parse([*asked, "--skip-broken"]), Processes(), torch.device("cpu"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["data"]["num_images"] == 2 and report["skipped"] == {"num_images": 1, "images": ["4.png"]}
    assert [json.loads(line)["image"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()] == ["4.png"]

"""--check-images counts pictures of one colour; they are no fault."""

from pathlib import Path

import pytest
from PIL import Image

from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import RowRules, read_manifest
from train.config.evaluation import WatchConfig
from train.data.check_images import check_images
from train.data.splits import RetentionSet, Splits

CASES = Path(__file__).parents[5] / "shared/cases"


def checked(folder: Path) -> int:
    rows = [f"{path.name},a picture {number}" for number, path in enumerate(sorted(folder.glob("*.png")))]
    (folder / "m.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return check_images(Splits(load_split(read_manifest(folder / "m.csv"), None), None, None, {}), 0)


def test_pictures_of_one_colour_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "plain.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    Image.linear_gradient("L").save(tmp_path / "grey.png")
    assert checked(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "3 pictures checked: 0 do not decode, 0 are there more than once, 2 are of one colour\n" in printed
    assert f"one colour: [{tmp_path}/m.csv] nothing.png: rgb(255, 255, 255)\n" in printed
    assert f"one colour: [{tmp_path}/m.csv] plain.png: rgb(9, 8, 7)\n" in printed


def test_rows_that_are_no_picture_of_their_own_are_told_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.linear_gradient("L").save(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("image,caption\na.png,one\na.png,two\nnone.png,three\n")
    manifest = read_manifest(tmp_path / "m.csv", rules=RowRules(skip_missing=True))
    watched = RetentionSet(WatchConfig(name="past", source="p.csv"), load_split(manifest, None), ["left out  1"])
    assert check_images(Splits(load_split(manifest, None), None, None, {}, [watched], reading_lines=manifest.lines()), 0) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"rows      3 in {tmp_path}/m.csv: 1 images, 1 joined to an earlier row's image, ")
    assert printed[1] == "left out  1 (watch set past)"


def test_pictures_that_decode_with_a_warning_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(7):
        Image.linear_gradient("L").rotate(90 * number).save(tmp_path / f"{number}.png", "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\0")
    assert checked(tmp_path) == 0
    printed = capsys.readouterr()
    assert ", 7 decode with a warning\n" in printed.out and printed.out.count(".png: Corrupt EXIF data.") == 7
    assert "Corrupt" not in printed.err


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not next to this repository")
def test_case_alpha_black(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "alpha_black_on_clear.png"
    (tmp_path / name).write_bytes((CASES / "alpha_black" / name).read_bytes())
    assert checked(tmp_path) == 0 and "1 are of one colour" in capsys.readouterr().out

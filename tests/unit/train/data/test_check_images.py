"""--check-images counts pictures of one colour; they are no fault."""

from pathlib import Path

import pytest
from PIL import Image

from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import read_manifest
from train.data.check_images import check_images
from train.data.splits import Splits

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


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not next to this repository")
def test_case_alpha_black(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "alpha_black_on_clear.png"
    (tmp_path / name).write_bytes((CASES / "alpha_black" / name).read_bytes())
    assert checked(tmp_path) == 0 and "1 are of one colour" in capsys.readouterr().out

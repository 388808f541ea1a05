"""A folder that is written whole or not at all: what a killed writer left is swept, and nothing else is."""

from pathlib import Path

import pytest

from eval.atomic import new_folder
from tests.shared_files import age


@pytest.mark.parametrize("name", ["model", "model[1]"])
def test_only_what_writers_of_this_very_folder_left_is_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name}.123.tmp").mkdir()
    age(tmp_path / f".{name}.123.tmp")
    others = [".model.v2.123.tmp", ".modelx.5.tmp", ".model.mine.tmp", ".model1.7.tmp"]
    for other in others:
        (tmp_path / other).mkdir()
    with new_folder(tmp_path / name) as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / name).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, name])
    assert (tmp_path / name / "file").read_text() == "x"


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "model") as folder:
        (folder / "file").write_text("x")
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_what_another_writer_put_there_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(OSError), new_folder(tmp_path / "model") as folder:
        (folder / "file").write_text("mine")
        (tmp_path / "model" / "file").write_text("another's")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "file").read_text() == "another's"

"""./launch.sh DATA: a data file, a data folder or a hub id goes to training as a configuration would, by its absolute path."""

from pathlib import Path

import pytest

from tests.integration.launch.house import House


@pytest.mark.parametrize(("name", "words"), [("my pairs.csv", []), ("own pictures", []), ("pairs.jsonl", ["train"])])
def test_a_data_set_is_found_from_the_folder_of_the_call(house: House, tmp_path: Path, name: str, words: list[str]) -> None:
    place = tmp_path / name
    place.touch() if place.suffix else place.mkdir()
    launch = house.start(*words, name, "exit=5", cwd=tmp_path)
    code, _, stderr = launch.end()
    assert code == 5, stderr
    assert launch.note("start")["argv"] == [str(place), "exit=5"]


@pytest.mark.parametrize("name", ["someone/shoes:small", "someone/shoes@v1.0", "someone/shoes:small@refs/pr/7"])
def test_a_hub_id_is_passed_on_as_it_is(house: House, tmp_path: Path, name: str) -> None:
    launch = house.start(name, "exit=5", cwd=tmp_path)
    assert launch.end()[0] == 5 and launch.note("start")["argv"] == [name, "exit=5"]


@pytest.mark.parametrize("name", ["none.csv", "configs/none.yaml", "pictures/none"])
def test_what_is_neither_there_nor_a_hub_id_is_refused_before_anything_is_set_up(house: House, tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    code, _, stderr = house.start(name, cwd=tmp_path).end()
    assert code == 2 and f"there is no command and no file {name} in {tmp_path}" in stderr and "environment" not in stderr


def test_paths_of_keys_are_found_from_the_folder_of_the_call_too(house: House, tmp_path: Path) -> None:
    """The README's own line, given where the pictures are; what is not there, and what is no path, stays as it is."""
    (tmp_path / "pairs.csv").touch()
    (tmp_path / "my photos").mkdir()
    keys = ["data.image_root=my photos", "model.base=google/none", "name=my photos", "exit=5"]
    launch = house.start("pairs.csv", *keys, cwd=tmp_path)
    assert launch.end()[0] == 5
    assert launch.note("start")["argv"] == [str(tmp_path / "pairs.csv"), f"data.image_root={tmp_path}/my photos", *keys[1:]]

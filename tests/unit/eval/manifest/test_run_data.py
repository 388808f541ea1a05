"""eval/manifest/run_data.py: what the folder of a run says of its data, and nothing where it says nothing that can be used."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.errors import UserError
from eval.manifest.made_split import SplitByHash
from eval.manifest.run_data import Reading, RunData, exported

DATA = {
    "source": "own/pairs.csv",
    "image_root": "own/photos",
    "columns": {"caption": "description"},
    "split": {"val": 0.1, "test": 0.2, "seed": 3},
    "train_split": "train",
    "val_split": "val",
    "test_split": None,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository with own/pairs.csv, own/photos, and the run runs/own with an export."""
    (tmp_path / "own" / "photos").mkdir(parents=True)
    (tmp_path / "own" / "pairs.csv").write_text("image,description\n")
    (tmp_path / "runs" / "own" / "export").mkdir(parents=True)
    return tmp_path


def run_of(place: Path, **changes: Any) -> RunData:
    config = {"name": "own", "runs_folder": "runs", "data": DATA | changes}
    (place / "runs" / "own" / "config.yaml").write_text(yaml.safe_dump(config))
    found = RunData.of_model(str(place / "runs" / "own" / "export"))
    assert found is not None
    return found


def test_a_model_that_is_no_export_of_a_run_has_none(place: Path) -> None:
    assert RunData.of_model("google/siglip-base-patch16-224") is None and RunData.of_model("") is None
    assert RunData.of_model(str(place / "runs" / "own" / "export")) is None, "neither config.yaml nor split.parquet is there"
    assert run_of(place).split_file is None
    (place / "runs" / "own" / "split.parquet").write_bytes(b"")
    assert run_of(place).split_file == place / "runs" / "own" / "split.parquet"


def test_the_export_may_be_the_working_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(place)
    monkeypatch.chdir(place / "runs" / "own" / "export")
    found = RunData.of_model(".")
    assert found is not None and found.folder == Path("..") and found.rule is not None


def test_the_rule_is_that_of_the_run(place: Path) -> None:
    assert run_of(place).rule == SplitByHash({"val": 0.1}, "train", 3)
    both = run_of(place, test_split="test").rule
    assert both is not None and list(both.shares.items()) == [("test", 0.2), ("val", 0.1)]


@pytest.mark.parametrize(
    "changes",
    [{"split": None}, {"split": {"val": 0.1, "test": "a tenth", "seed": 0}}, {"split": {"val": 0.1, "test": 0.1}}, {"train_split": None}],
)
def test_a_rule_that_is_not_whole_is_not_known(place: Path, changes: dict[str, Any]) -> None:
    assert run_of(place, **changes).rule is None


@pytest.mark.parametrize("text", ["", "- a list", "data: [1]", "data: {source: [", "x: " + "[" * 2000])
def test_a_configuration_that_cannot_be_used_says_nothing(place: Path, text: str) -> None:
    (place / "runs" / "own" / "config.yaml").write_text(text)
    found = RunData.of_model(str(place / "runs" / "own" / "export"))
    assert found is not None and found.rule is None and found.reading(str(place / "own" / "pairs.csv")) is None


def test_its_own_source_is_read_as_it_read_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Reading(str(place / "own" / "photos"), {"caption": "description"})
    run = run_of(place)
    assert run.reading(str(place / "own" / "pairs.csv")) == read
    monkeypatch.chdir(place / "own")
    assert run.reading("pairs.csv") == read, "as seen from any folder"
    (place / "own" / "other.csv").write_text("image,description\n")
    assert run.reading("other.csv") is None and run.reading("nothing.csv") is None
    assert run_of(place, image_root="own/pictures").reading("pairs.csv") == Reading(None, {"caption": "description"})


def test_a_data_set_of_the_hub_is_known_by_its_name(place: Path) -> None:
    run = run_of(place, source="owner/pairs", image_root=None)
    assert run.reading("owner/pairs") == Reading(None, {"caption": "description"}) and run.reading("owner/others") is None


def test_a_run_stands_for_its_export_and_anything_else_for_itself(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="has no export yet: end the run"):  # and the hub is not asked for a model of this name
        exported(str(tmp_path))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").touch()
    assert exported(str(tmp_path)) == str(tmp_path / "export")
    assert exported(str(tmp_path / "export")) == str(tmp_path / "export")
    assert exported("google/siglip-base-patch16-224") == "google/siglip-base-patch16-224"

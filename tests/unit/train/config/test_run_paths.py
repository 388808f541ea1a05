"""train/config/load.py: a run's configuration, its relative paths read from another folder than it was started in."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from train.config.job import JobConfig
from train.config.load import ConfigError, found_from_here, load_config, read_run, read_run_as
from train.config.reranker import RerankerConfig

TRAIN = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-3, "eval_every_steps": 2, "checkpoint_every_steps": 2}


def config(**keys: Any) -> JobConfig:
    data = {"source": "data/*.parquet", "image_root": "data", "truth": "true.qrels", "expand": ["synonyms:words.txt", "column:data"]}
    record = {"name": "one", "model": {"base": "models/base"}, "data": data, "train": TRAIN}
    return JobConfig.model_validate(record | {"watch": [{"name": "w", "source": "google/hub-set"}]} | keys)


@pytest.fixture
def started_in(tmp_path: Path) -> Path:
    folder = tmp_path / "a project [1]"
    for name in ("runs/one", "data", "models/base", "train", "elsewhere"):
        (folder / name).mkdir(parents=True)
    for name in ("data/a.parquet", "true.qrels", "words.txt"):
        (folder / name).touch()
    return folder


def test_what_is_found_where_the_run_was_started_is_made_absolute(started_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(started_in / "elsewhere")
    found = found_from_here(config(), Path("../runs/one"))
    data = found.data
    assert (found.model.base, data.source, data.image_root, data.truth, data.expand[0]) == tuple(
        str(started_in / name) for name in ("models/base", "data/*.parquet", "data", "true.qrels")
    ) + (f"synonyms:{started_in}/words.txt",)
    assert (data.expand[1], data.train_split) == ("column:data", "train"), "names, though there are folders of that name"
    assert found.watch[0].source == "google/hub-set"


def test_a_pattern_with_braces_is_made_absolute(started_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (started_in / "data" / "s-00.tar").touch()
    monkeypatch.chdir(started_in / "elsewhere")
    found = found_from_here(config(data={"source": "data/s-{00..12}.tar"}), Path("../runs/one"))
    assert found.data.source == str(started_in / "data" / "s-{00..12}.tar")


def test_what_is_found_here_stays_as_it_is(started_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(started_in)
    one = config()
    assert found_from_here(one, Path("runs/one")) is one


def test_a_run_that_was_moved_or_lies_apart_stays_as_it_is(started_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(started_in / "elsewhere")
    (started_in / "runs" / "one").rename(started_in / "two")
    assert found_from_here(config(), Path("../two")).model.base == "models/base"
    assert found_from_here(config(runs_folder=str(started_in)), Path("../two")).model.base == "models/base"


def test_a_run_of_an_earlier_version_is_read_without_the_keys_that_were_removed(tmp_path: Path) -> None:
    """It can be exported; what begins a run is refused (test_run.py, test_reranker.py)."""
    world = RerankerWorld(Path("pairs"), Path("base"), Path("blip"))
    jobs = {
        "siglip": SmallWorld.record(world, tmp_path, mining={"mine_every_steps": 2, "ensemble": ["other:0.5"]}),
        "reranker": world.record(tmp_path, constant_answer={"within": 0.05, "over_steps": 9}),
    }
    for name, record in jobs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    mining = read_run(tmp_path / "siglip").mining
    assert mining is not None and mining.mine_every_steps == 2
    assert read_run_as(RerankerConfig, tmp_path / "reranker").miner == "base"
    with pytest.raises(ConfigError, match="ensemble was removed"):
        load_config(tmp_path / "siglip" / "config.yaml")

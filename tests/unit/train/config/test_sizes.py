"""train/config/sizes.py: what a configuration leaves out follows from the data; what it gives means what it meant."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.train.config.test_run import GOOD, changed, refusal, write
from train.config.job import JobConfig
from train.config.load import ConfigError, load_config, load_run_config
from train.config.reranker import RerankerConfig
from train.config.run import SplitConfig
from train.config.sizes import DataSizes, batch_size_for, epochs_for

LEAST: dict[str, Any] = {
    "name": "job",
    "model": {"base": "somewhere"},
    "data": {"source": "pairs.csv"},
    "train": {"learning_rate": 1e-5},
}


def resolved(folder: Path, record: dict[str, Any], *overrides: str, images: int = 80, gallery: int = 10) -> JobConfig:
    config = load_config(write(folder, record), overrides)
    assert config.is_open
    return config.resolved(DataSizes(images, gallery), None)


def least(**changes: Any) -> dict[str, Any]:
    """LEAST with `section__key=value`."""
    record = yaml.safe_load(yaml.safe_dump(LEAST))
    for key, value in changes.items():
        section, _, last = key.partition("__")
        if last:
            record.setdefault(section, {})[last] = value
        else:
            record[section] = value
    return record


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"),
    [(1, 2, 10), (10, 10, 10), (16, 16, 10), (319, 16, 10), (320, 32, 10), (1000, 64, 10), (2559, 128, 10), (2560, 256, 10)]
    + [(51_200, 256, 10), (100_000, 256, 5), (170_000, 256, 3), (600_000, 256, 1), (10**7, 256, 1)],
)
def test_batch_and_epochs_of_a_data_set(images: int, batch_size: int, epochs: int) -> None:
    assert (batch_size_for(images), epochs_for(images)) == (batch_size, epochs)


def test_a_configuration_without_sizes_has_them_all_once_the_data_are_read(tmp_path: Path) -> None:
    config = resolved(tmp_path, least(mining={}, rerank={"model": "blip"}))
    train, mining = config.train, config.mining
    assert not config.is_open and mining is not None and config.rerank is not None
    assert (train.batch_size, train.max_steps, train.num_warmup_steps) == (16, 50, 5)  # 10 epochs of 5 steps
    assert (train.eval_every_steps, train.checkpoint_every_steps) == (5, 5)
    assert (mining.start_step, mining.mine_every_steps, config.rerank.top_k) == (10, 10, 10)
    assert config.from_data == {
        "train.batch_size": 16,
        "train.max_steps": 50,
        "train.eval_every_steps": 5,
        "train.checkpoint_every_steps": 5,
        "mining.start_step": 10,
        "mining.mine_every_steps": 10,
        "rerank.top_k": 10,
    }
    assert JobConfig.model_validate(config.model_dump(mode="json")).model_dump() == config.model_dump()


def test_what_is_given_is_as_it_was(tmp_path: Path) -> None:
    record = changed(mining={"mine_every_steps": 7}, rerank={"model": "blip", "top_k": 40})
    config = load_config(write(tmp_path, record))
    assert not config.is_open and config.from_data == {}
    assert config.model_dump() == JobConfig.model_validate(record).model_dump()
    assert config.mining is not None and config.mining.start_step == 0
    by_epochs = load_config(write(tmp_path, changed(mining={"mine_every_epochs": 1})))
    assert by_epochs.mining is not None and (by_epochs.mining.mine_every_steps, by_epochs.mining.start_step) == (None, 0)


def test_epochs_and_shares_become_steps(tmp_path: Path) -> None:
    asked = {"epochs": 2.5, "batch_size": 8, "warmup_steps": 0.2, "eval_every_steps": 0.5, "checkpoint_every_steps": 4}
    record = least(mining={"mine_every_steps": 0.25, "start_step": 0.1})
    config = resolved(tmp_path, record, *[f"train.{key}={asked[key]}" for key in asked])
    train, mining = config.train, config.mining
    assert mining is not None and (train.epochs, train.max_steps) == (None, 25)
    assert (train.num_warmup_steps, train.eval_every_steps, train.checkpoint_every_steps) == (5, 12, 4)
    assert (mining.start_step, mining.mine_every_steps) == (2, 6)
    assert resolved(tmp_path, least(train__epochs=0.01, train__learning_rate=1e-5)).train.max_steps == 1


def test_of_epochs_and_steps_the_command_line_wins(tmp_path: Path) -> None:
    by_steps = changed(mining={"mine_every_steps": 7})
    assert resolved(tmp_path, by_steps, "train.epochs=2").train.max_steps == 20
    config = load_config(write(tmp_path, least(train__epochs=3, mining={"mine_every_epochs": 2})), ["train.max_steps=9"])
    assert config.train.max_steps == 9 and config.mining is not None and config.mining.mine_every_epochs == 2
    mining = load_config(write(tmp_path, by_steps), ["mining.mine_every_epochs=1"]).mining
    assert mining is not None and (mining.mine_every_steps, mining.mine_every_epochs) == (None, 1)
    assert "give one of epochs and max_steps" in refusal(tmp_path, least(), "train.epochs=2", "train.max_steps=9")


def test_null_is_as_if_it_were_left_out(tmp_path: Path) -> None:
    keys = ("epochs", "max_steps", "batch_size", "eval_every_steps", "checkpoint_every_steps")
    assert resolved(tmp_path, least(), *[f"train.{key}=null" for key in keys]).model_dump() == resolved(tmp_path, least()).model_dump()


def test_a_split_that_was_made_is_in_the_resolved_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, least())).resolved(DataSizes(80, 10), SplitConfig(val=0.2))
    assert config.data.split == SplitConfig(val=0.2, test=0.1, seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__epochs": 3}, "train: give one of epochs and max_steps"),
        ({"train__epochs": 0, "train__max_steps": None}, "train.epochs: Input should be greater than 0; found 0"),
        ({"train__epochs": "many", "train__max_steps": None}, "train.epochs: Input should be a valid number"),
        ({"train__epochs": float("inf"), "train__max_steps": None}, "train.epochs: Input should be a finite number"),
        ({"train__epochs": True, "train__max_steps": None}, "train.epochs: expected no truth value"),
        ({"train__eval_every_steps": 1.5}, "train.eval_every_steps: Input should be a valid integer"),
        ({"train__eval_every_steps": 0}, "train.eval_every_steps: Input should be greater than 0"),
        ({"train__max_steps": "many", "train__eval_every_steps": 0.1}, "train.max_steps: Input should be a valid integer"),
        ({"data__split": {"val": 0.5, "test": 0.5}}, "data.split: val 0.5 and test 0.5 leave nothing to train on"),
        ({"data__split": {"val": 1}}, "data.split.val: Input should be less than 1"),
        ({"data__split": {}, "data__train_split": None}, "data.split makes splits, and data.train_split null asks for none"),
    ],
)
def test_what_cannot_be_a_size_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, changed(**changes))


def test_what_does_not_go_with_the_sizes_is_refused_when_they_are_known(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, least(mining={"start_step": 60})), ["seed=1"])
    with pytest.raises(ConfigError, match=r"mining.start_step 60 lies beyond train.max_steps 50"):
        config.resolved(DataSizes(80, 10), None)


def test_a_rerankers_tuning_has_the_same_sizes(tmp_path: Path) -> None:
    record = least(train__learning_rate=1e-5) | {"miner": "siglip", "model": {"base": "blip"}}
    config = load_run_config(RerankerConfig, write(tmp_path, record))
    assert config.is_open and config.evaluation.top_k == 16
    found = config.resolved(DataSizes(800, 9), None)
    assert (found.train.batch_size, found.train.max_steps, found.train.eval_every_steps) == (64, 120, 12)
    assert found.evaluation.top_k == 9


def test_a_data_set_in_the_place_of_a_configuration_is_tuned_under_its_own_name(tmp_path: Path) -> None:
    source = tmp_path / "My shoes (2).csv"
    source.write_text("image,caption\n")
    config = load_config(source, ["train.epochs=3"])
    assert (config.name, config.data.source) == ("My-shoes-2", str(source))
    assert config.model.base == "google/siglip-base-patch16-224" and config.mining is None and config.rerank is None
    assert load_config(source, ["name=other"]).name == "other"
    folder = tmp_path / "shoes.v2"
    folder.mkdir()
    assert load_config(folder).name == "shoes.v2"
    assert load_config("someone/shoes").data.source == "someone/shoes"
    assert "give the path of a YAML file" in str(pytest.raises(ConfigError, load_config, tmp_path / "none.yaml").value)
    assert GOOD["name"] == load_config(write(tmp_path, GOOD)).name

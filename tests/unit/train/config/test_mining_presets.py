"""Presets of `mining`: a name stands for its values, own keys come first, and a run records what came of it."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from eval.errors import UserError
from train.config.job import JobConfig
from train.config.load import ConfigError, load_config, load_run_config, read_run
from train.config.mining import PRESETS, MiningConfig, PresetName, with_preset
from train.config.reference import page, schema_of
from train.engine.folder import check_continues, claim_folder, learnt

LEAST = {
    "name": "a",
    "model": {"base": "b"},
    "data": {"source": "c.csv"},
    "train": {"max_steps": 100, "batch_size": 64, "learning_rate": 1},
}
VALUES = {  # negatives_per_image, weight, rank_min, margin; written here anew
    "gentle": (2, 0.1, 3, 0.0),
    "standard": (4, 0.3, 1, -3.0),
    "hard": (8, 1.0, 1, None),
}


def load(folder: Path, mining: Any, *overrides: str) -> MiningConfig:
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(LEAST | {"mining": mining}))
    found = load_config(folder / "job.yaml", overrides).mining
    assert found is not None
    return found


def values(mining: MiningConfig) -> tuple[Any, ...]:
    return (mining.negatives_per_image, mining.weight, mining.rank_min, mining.margin)


@pytest.mark.parametrize("name", VALUES)
def test_a_name_is_its_values_and_the_schedule_of_an_empty_section(tmp_path: Path, name: str) -> None:
    found = {
        "text": load(tmp_path, name),
        "key": load(tmp_path, {"preset": name}),
        "command line": load(tmp_path, None, f"mining={name}"),
        "over another": load(tmp_path, "gentle" if name != "gentle" else "hard", f"mining={name}"),
        "key on the command line": load(tmp_path, {}, f"mining.preset={name}"),
    }
    assert {way: values(mining) for way, mining in found.items()} == dict.fromkeys(found, VALUES[name])
    assert all(mining == found["text"] for mining in found.values())
    plain = load(tmp_path, {})
    assert (found["text"].start_step, found["text"].mine_every_steps) == (plain.start_step, plain.mine_every_steps) == (20, 20)


def test_own_keys_come_before_those_of_the_preset(tmp_path: Path) -> None:
    assert values(load(tmp_path, {"preset": "gentle", "weight": 0.2})) == (2, 0.2, 3, 0.0)
    assert values(load(tmp_path, {"preset": "gentle", "margin": None})) == (2, 0.1, 3, None)
    assert values(load(tmp_path, "gentle", "mining.weight=0.2")) == (2, 0.2, 3, 0.0)
    assert values(load(tmp_path, {}, "mining.preset=hard", "mining.weight=0.2")) == (8, 0.2, 1, None)


def test_a_preset_of_the_command_line_comes_before_the_keys_of_the_file(tmp_path: Path) -> None:
    file = {"weight": 0.2, "margin": 5.0, "start_step": 7}
    found = load(tmp_path, file, "mining.preset=hard")
    assert values(found) == VALUES["hard"] and found.start_step == 7
    scheduled = load(tmp_path, "hard", "mining.mine_every_epochs=1")
    assert (scheduled.mine_every_steps, scheduled.mine_every_epochs, scheduled.weight) == (None, 1, 1.0)


def test_composed_batches_take_a_preset_without_its_weight(tmp_path: Path) -> None:
    assert values(load(tmp_path, {"preset": "gentle", "form": "images"})) == (2, 1.0, 3, 0.0)
    with pytest.raises(ConfigError, match="so weight would do nothing"):
        load(tmp_path, {"preset": "gentle", "form": "images", "weight": 0.2})


@pytest.mark.parametrize("mining", ["gentel", {"preset": "gentel"}, {"preset": "gentel", "weight": 0.2}])
def test_an_unknown_name_is_refused_with_the_three(tmp_path: Path, mining: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, mining)
    text = str(caught.value)
    assert "gentel" in text and all(name in text for name in VALUES) and "1 fault(s)" in text
    with pytest.raises(ConfigError, match="the command line gives mining=off"):
        load(tmp_path, {}, "mining=off")
    assert with_preset(mining) == mining


def test_a_run_records_the_values_and_goes_on_with_them_when_the_preset_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(LEAST | {"mining": "standard", "runs_folder": str(tmp_path / "runs")}))
    config = load_config(tmp_path / "job.yaml")
    claim_folder(config).close()
    recorded = yaml.safe_load((tmp_path / "runs" / "a" / "config.yaml").read_text())["mining"]
    assert "preset" not in recorded and (recorded["weight"], recorded["margin"]) == (0.3, -3.0)
    assert "mining.preset" not in learnt(config)
    (tmp_path / "runs" / "a" / "finished.json").write_text("{}")
    monkeypatch.setitem(PRESETS, "standard", {"weight": 0.7})  # type: ignore[arg-type]
    assert read_run(tmp_path / "runs" / "a").mining == config.mining
    again = load_run_config(JobConfig, tmp_path / "runs" / "a" / "config.yaml")
    check_continues(again)
    assert again.mining == config.mining
    with pytest.raises(UserError, match=r"mining\.weight: 0\.3 -> 0\.7"):  # never with other values unseen
        check_continues(load_config(tmp_path / "job.yaml"))


def test_schema_and_page_name_them() -> None:
    assert tuple(PRESETS) == get_args(PresetName) == tuple(VALUES)
    schema = schema_of(JobConfig)
    assert {"type": "string", "enum": ["gentle", "standard", "hard"]} in schema["properties"]["mining"]["anyOf"]
    assert {"type": "string", "enum": ["gentle", "standard", "hard"]} in schema["$defs"]["MiningConfig"]["properties"]["preset"]["anyOf"]
    (row,) = (line for line in page().split("\n") if line.startswith("| `preset` |"))
    assert "gentle: {negatives_per_image: 2, weight: 0.1, rank_min: 3, margin: 0.0}" in row
    assert "hard: {negatives_per_image: 8, weight: 1.0, margin: null}" in row
    (row,) = (line for line in page().split("\n") if line.startswith("| `mining` |"))
    assert "section or `gentle`, `standard`, `hard` or null" in row

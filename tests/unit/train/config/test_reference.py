"""configs/schema.json and docs/configuration.md are those of the models; the schema says of a configuration what loading it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.config.job import JobConfig
from train.config.nearest_key import keys_of, section_of
from train.config.reference import both_schemas, page, schema_of, schema_text
from train.config.reranker import RerankerConfig
from train.config.sizes import SHARE

ROOT = Path(__file__).parents[4]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
REMEDY = "run python -m train.config --write"


def test_the_written_files_are_those_of_the_models() -> None:
    assert (ROOT / "configs" / "schema.json").read_text(encoding="utf-8") == schema_text(), REMEDY
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == page(), REMEDY


def test_every_key_of_both_kinds_is_on_the_page_with_its_meaning() -> None:
    text = page()
    for kind in (JobConfig, RerankerConfig):
        for key, field in keys_of(kind):
            assert f"| `{key.rpartition('.')[2]}` |" in text
            assert field.description or section_of(field.annotation), key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_names_the_schema_first_and_fits_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    name = text.split("\n")[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / name).resolve() == ROOT / "configs" / "schema.json"
    assert faults(yaml.safe_load(text)) == []


def faults(record: Any) -> list[str]:
    """What a record has that the schema does not know, or lacks that it requires, section by section; values are not looked at."""
    schema = both_schemas()

    def of(value: Any, part: dict[str, Any], place: str) -> list[str]:
        choices = [part, *part.get("anyOf", ())]
        names = [choice["$ref"].rpartition("/")[2] for choice in choices if "$ref" in choice]
        part = schema["$defs"][names[0]] if names else part
        if not isinstance(value, dict) or "properties" not in part:
            return []
        found = [f"{place}{key}: unknown" for key in value if key not in part["properties"]]
        found += [f"{place}{key}: missing" for key in part.get("required", ()) if key not in value]
        below = [of(value[key], part["properties"][key], f"{place}{key}.") for key in value.keys() & part["properties"]]
        return found + [fault for faults in below for fault in faults]

    return of(record, schema["then" if "miner" in record else "else"], "")


def test_the_schema_refuses_what_is_unknown_or_missing_and_not_what_follows_from_the_data() -> None:
    least = {"name": "a", "model": {"base": "b"}, "data": {"source": "c"}, "train": {"learning_rate": 1e-5}}
    assert faults(least) == []
    found = faults(least | {"train": {"lr": 1e-5}, "mining": {"margn": 0}})
    assert sorted(found) == ["mining.margn: unknown", "train.learning_rate: missing", "train.lr: unknown"]
    assert faults(least | {"miner": "x", "negatives": {}}) == []
    assert faults(least | {"negatives": {}}) == ["negatives: unknown"]


def test_a_share_is_allowed_where_steps_are_and_nowhere_else() -> None:
    sections = schema_of(JobConfig)["$defs"]
    properties = sections["TrainConfig"]["properties"] | sections["MiningConfig"]["properties"]
    found = {key for key, part in properties.items() if any(choice.get("description") == SHARE for choice in part.get("anyOf", ()))}
    assert found == {"warmup_steps", "eval_every_steps", "checkpoint_every_steps", "mine_every_steps", "start_step"}
    assert json.loads(schema_text())["$defs"]["TrainConfig"]["required"] == ["learning_rate"]

"""A job whose final report measures an ensemble and expanded queries in addition to base and tuned, as the command does."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.nursery import Nursery
from tests.small_job import SmallWorld, load
from train.config.job import JobConfig
from train.config.model import ScratchConfig
from train.model.random_init import write_scratch

OTHER = ScratchConfig(image_size=24, patch_size=8, width=48, num_layers=1, num_heads=2, vocab_size=80, num_tokens=16)


@pytest.fixture(scope="module")
def finished(small_world: SmallWorld, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(configuration, additional member, what was printed) of a run that chose on val."""
    folder = tmp_path_factory.mktemp("combined")
    write_scratch(folder / "other", OTHER, load(small_world.manifest), seed=2)
    (folder / "synonyms.txt").write_text("red: crimson\nblue: azure, navy\n", encoding="utf-8")
    evaluation = {
        "ensemble": {"members": {"other": str(folder / "other")}, "combine": ["logits", "reciprocal-rank"]},
        "expand": [f"synonyms:{folder / 'synonyms.txt'}"],
        "pooling": ["mean", "max"],
    }
    config = small_world.write_config(folder, train__max_steps=2, mining=None, evaluation=evaluation)
    child = nursery.start("train", [str(config)])
    assert child.wait() == 0, child.output()
    return config, folder / "other", child.output()


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_the_report_holds_every_stage_and_what_was_chosen_on_val(finished: tuple[Path, Path, str]) -> None:
    config, _, printed = finished
    folder = config.parent / "runs" / "job" / "eval" / "test"
    record = report(folder)
    assert list(record["stages"]) == ["base", "tuned", "other", "ensemble", "tuned+synonyms", "ensemble+synonyms"]
    assert {(row["stage"], row["against"]) for row in record["comparisons"]} == {
        *(("tuned", "base"), ("other", "base"), ("ensemble", "tuned"), ("ensemble", "other")),
        *(("tuned+synonyms", "tuned"), ("ensemble+synonyms", "ensemble")),
    }
    (ensemble,) = record["ensemble"]
    assert ensemble["chosen_on"]["split"] == "val" and len(ensemble["curve"]) == 2 * 21
    assert {one["stage"]: one["chosen_on"]["split"] for one in record["expansion"]} == {
        "tuned+synonyms": "val",
        "ensemble+synonyms": "val",
    }
    assert (folder / "expansions.parquet").exists() == any(one["pool"] is not None for one in record["expansion"])
    assert "ensemble: " in printed and "expansion synonyms (tuned+synonyms)" in printed


def test_the_command_finds_the_same_on_the_export(
    finished: tuple[Path, Path, str], small_world: SmallWorld, nursery: Nursery, tmp_path: Path
) -> None:
    config, other, _ = finished
    words = ["--combine", "logits,reciprocal-rank", "--expand", f"synonyms:{config.parent / 'synonyms.txt'}", "--pooling", "mean,max"]
    asked = ["--model", str(config.parent / "runs/job/export"), "--ensemble", str(other), "--choose-on", "val", *words]
    data = ["--data", str(small_world.manifest), "--split", "test", "--num-workers", "0", "--output", str(tmp_path / "again")]
    child = nursery.start("eval", [*asked, *data], env={"ACCELERATE_USE_CPU": "true"})
    assert child.wait() == 0, child.output()
    names = {"model": "tuned", "model-2": "other", "ensemble": "ensemble"}
    names |= {"model+synonyms": "tuned+synonyms", "ensemble+synonyms": "ensemble+synonyms"}
    rows = pq.read_table(tmp_path / "again" / "queries.parquet").to_pylist()
    expected = pq.read_table(config.parent / "runs/job/eval/test/queries.parquet").to_pylist()
    kept = [row for row in expected if row["stage"] != "base"]
    key = ("stage", "direction", "query_id")
    found = {tuple(row[name] for name in key): row["rank"] for row in ({**row, "stage": names[row["stage"]]} for row in rows)}
    assert found == {tuple(row[name] for name in key): row["rank"] for row in kept}


def test_it_is_refused_before_the_first_step(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    for number, (evaluation, message) in enumerate(
        [
            ({"expand": ["synonyms:/nowhere/words.txt"]}, "/nowhere/words.txt"),
            ({"ensemble": {"members": {"large": "/nowhere/large"}}}, "/nowhere/large"),
            ({"expand": ["column:paraphrases"]}, "paraphrases"),
        ]
    ):
        config = small_world.write_config(tmp_path / str(number), mining=None, evaluation=evaluation)
        child = nursery.start("train", [str(config)])
        assert child.wait() == 2 and message in child.output(), child.output()
        steps = config.parent / "runs" / "job" / "metrics.jsonl"
        assert not steps.exists() or '"event": "step"' not in steps.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation__expand": ["flips"], "data__test_split": None}, "chosen on data.val_split and measured on data.test_split"),
        ({"evaluation__ensemble": {"members": {"x": "y"}}, "data__val_split": None}, "chosen on data.val_split"),
        ({"evaluation__ensemble": {"members": {}}}, "at least 1 item"),
        ({"evaluation__ensemble": {"members": {"tuned": "y"}}}, "names of this job's own stages"),
        ({"evaluation__ensemble": {"members": {"x": "y:2"}, "combine": ["logits", "reciprocal-rank"]}}, "name one rule"),
        ({"evaluation__ensemble": {"members": {"x": "y"}, "combine": ["standardised"]}}, "found 'standardised', which was removed"),
        ({"evaluation__ensemble": {"members": {"x": "y"}}, "evaluation__models": {"x": "y"}}, "both name"),
        ({"evaluation__pooling": ["max"]}, "evaluation.pooling: there are no additional views to pool"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(small_world: SmallWorld, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JobConfig.model_validate(small_world.record(Path("runs"), **changes))


def test_given_weights_need_no_val(small_world: SmallWorld) -> None:
    record = small_world.record(Path("runs"), evaluation__ensemble={"members": {"x": "y:0.5"}}, data__test_split=None)
    assert not JobConfig.model_validate(record).evaluation.chooses

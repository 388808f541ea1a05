"""`python -m eval --choose-on`, `--skip-margin` and `--seconds` as a user runs them, on one process and on two; and what is refused."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.__main__ import parse
from eval.errors import UserError
from rerank.asked import read_plan
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from tests.nursery import Nursery
from tests.small_job import SmallWorld

CPU = {"ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def arguments(small_world: SmallWorld, tiny_blip: Path) -> list[str]:
    models = ["--model", str(small_world.base), "--rerank", str(tiny_blip), "--top-k", "5"]
    return [*models, "--data", str(small_world.manifest), "--split", "test", "--num-workers", "0"]


def report(folder: Path) -> dict:
    record = json.loads((folder / "report.json").read_text())
    for stage in record["stages"].values():
        stage["cost"] = {key: value for key, value in stage["cost"].items() if "seconds" not in key}
    return record


def test_chosen_on_val_by_one_process_and_by_two(nursery: Nursery, arguments: list[str], tmp_path: Path) -> None:
    asked = [*arguments, "--choose-on", "val", "--max-loss", "0.1", "--score", "margin", "--output"]
    child = nursery.start("eval", [*asked, str(tmp_path / "one")], env=CPU)
    assert child.wait() == 0, child.output()
    ranks = nursery.start_ranks("eval", [*asked, str(tmp_path / "two")], 2)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output()
    record = report(tmp_path / "one")
    assert record == report(tmp_path / "two")
    assert pq.read_table(tmp_path / "one" / "queries.parquet").equals(pq.read_table(tmp_path / "two" / "queries.parquet"))
    assert list(record["stages"])[1:] == ["model+blip", "model+blip+sum", "model+blip+fused", "model+blip+adaptive"]
    assert [(row["stage"], row["against"]) for row in record["comparisons"][::9]] == [
        ("model+blip", "model"),
        ("model+blip+fused", "model+blip"),
        ("model+blip+adaptive", "model+blip"),
    ]
    for section in ("fusion", "adaptive"):
        (one,) = record[section]
        assert (one["chosen_on"]["split"], one["chosen_on"]["num_images"]) == ("val", 14) and record["data"]["split"] == "test"
    assert record["adaptive"][0]["max_loss"] == 0.1 and record["adaptive"][0]["chosen"]["lost"] <= 0.1
    assert "model+blip+fused: weight" in child.output() and "model+blip+adaptive: " in child.output()


def test_skipping_by_a_given_margin_within_a_time(nursery: Nursery, arguments: list[str], tmp_path: Path) -> None:
    child = nursery.start("eval", [*arguments, "--skip-margin", "0.05", "--seconds", "600", "--output", str(tmp_path / "out")], env=CPU)
    assert child.wait() == 0, child.output()
    record = report(tmp_path / "out")
    assert list(record["stages"]) == ["model", "model+blip+adaptive"]
    assert record["budget"]["top_k"] == 5 and "budget   600 s to rerank in; measured" in child.output()
    cost = record["stages"]["model+blip+adaptive"]["cost"]
    assert 0 < cost["pairs_needed"] < record["budget"]["num_pairs"] and cost["skip_margin"] == 0.05


def test_the_kind_of_score_is_the_scorers(tiny_blip: Path, noise) -> None:
    """What --score and rerank.score choose between: columns 1 and 1 less 0 of the same logits, which differ here."""
    logit, margin = (load_scorer(str(tiny_blip), settings=ScorerSettings(score_kind=kind)) for kind in ("match_logit", "margin"))  # type: ignore[arg-type]
    assert logit.fingerprint != margin.fingerprint
    assert abs(logit.score(noise(1), ["a dog"])[0] - margin.score(noise(1), ["a dog"])[0]) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--choose-on", "val", "--split", "test"], "--choose-on: there is nothing to choose; give --rerank"),
        (["--seconds", "5"], "--seconds needs --rerank"),
        (["--skip-margin", "5"], "--skip-margin needs --rerank"),
        (["--rerank", "b", "--seconds", "5", "--top-k", "1"], "--top-k: a time budget needs 2 per query or more; found 1"),
        (["--rerank", "b", "--seconds", "0"], "--seconds: expected a time above 0 seconds; found 0"),
        (["--rerank", "b", "--skip-margin", "-1"], "--skip-margin: expected a difference of first-stage scores, 0 or more; found -1"),
        (["--rerank", "b", "--choose-on", "val", "--split", "test", "--skip-margin", "1"], "--skip-margin: it is given, and weight"),
        (["--rerank", "b", "--choose-on", "test", "--split", "test"], "is the split that is measured"),
        (["--rerank", "b", "--choose-on", "val"], "--choose-on needs --split"),
        (["--rerank", "b", "--choose-on", "val", "--split", "test", "--max-loss", "2"], "--max-loss: expected a share from 0 to 1"),
        (["--rerank", "b", "--max-loss", "0.01"], "give --choose-on (and skipping in --choose), or leave it out"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, UserError)) as left:
        read_plan(parse(["--model", "m", "--data", "d", "--output", "o", *options]))
    assert message in (str(left.value) if isinstance(left.value, UserError) else capsys.readouterr().err)

"""Which arms a job's final report compares, and which comparisons it refuses before the first step."""

from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from rerank.combine.views import Pool
from rerank.reorder.plan import Plan, Tuning
from tests.small_job import SmallWorld
from train.config.job import JobConfig
from train.siglip.stages import check_plan, evaluation_plan


def config(**changes: Any) -> JobConfig:
    return JobConfig.model_validate(SmallWorld(Path("pairs.jsonl"), Path("base")).record(Path("runs"), **changes))


def test_each_step_of_the_job_by_default() -> None:
    assert evaluation_plan(config()).pairs(None) == [("tuned", "base")]
    plan = evaluation_plan(config(rerank={"model": "x"}, evaluation__models={"large": "x"}))
    assert plan.pairs("blip") == [
        *(("tuned", "base"), ("large", "base"), ("base+blip", "base"), ("tuned+blip", "tuned"), ("large+blip", "large")),
        ("tuned+blip", "base+blip"),
    ]


def test_what_is_chosen_on_val_is_compared_with_what_it_was_chosen_from() -> None:
    asked = config(rerank={"model": "x", "fusion": True, "adaptive": True, "adaptive_max_loss": 0.01})
    assert asked.rerank is not None and asked.rerank.plan.tuning == Tuning(fusion=True, max_loss=0.01, stages=("tuned",))
    pairs = evaluation_plan(asked).pairs("blip")
    assert pairs[-2:] == [("tuned+blip+fused", "tuned+blip"), ("tuned+blip+adaptive", "tuned+blip")]
    alone = config(rerank={"model": "x", "adaptive": True}, evaluation__comparisons=[["tuned+blip+adaptive", "tuned"]])
    assert alone.rerank is not None and alone.rerank.plan.tuning == Tuning(max_loss=0.001, stages=("tuned",))
    check_plan(evaluation_plan(alone), "blip")
    with pytest.raises(UserError, match=r"no stage is called \['tuned\+blip\+fused'\]"):
        check_plan(evaluation_plan(config(rerank={"model": "x"}, evaluation__comparisons=[["tuned+blip+fused", "tuned"]])), "blip")


def test_with_a_margin_given_the_job_measures_what_the_command_does() -> None:
    plan = evaluation_plan(config(rerank={"model": "x", "skip_margin": 0.1, "seconds": 60}))
    assert plan.reranking == Plan(top_k=32, seconds=60, skip_margin=0.1, tuning=Tuning(stages=("tuned",)))
    assert plan.names("blip") == ["base", "tuned", "base+blip+adaptive", "tuned+blip+adaptive"]
    assert plan.pairs("blip")[1:] == [
        ("base+blip+adaptive", "base"),
        ("tuned+blip+adaptive", "tuned"),
        ("tuned+blip+adaptive", "base+blip+adaptive"),
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rerank": {"model": "x", "seconds": 0}}, "seconds: expected a time above 0 seconds; found 0"),
        ({"rerank": {"model": "x", "skip_margin": -1}}, "skip_margin: expected a difference of first-stage scores, 0 or more; found -1"),
        ({"rerank": {"model": "x", "skip_margin": 0.1, "fusion": True}}, "skip_margin: it is given, and weight or margin are to be chosen"),
        ({"evaluation": {"choose": ["expansion"]}}, "evaluation.choose: expansion: there is none"),
        ({"evaluation": {"choose": ["ensemble"], "ensemble": {"members": {"x": "y:2"}}}}, "choose: ensemble: the weights are given"),
        ({"evaluation": {"expand": ["flips"], "pooling": ["mean:2"]}}, "evaluation.pooling: number and weight are chosen"),
        ({"evaluation": {"expand": ["flips"], "choose": [], "pooling": ["mean:0"]}}, r"evaluation.pooling: expected RULE\[:NUMBER"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_by_its_key(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**asked)


def test_what_is_given_is_not_chosen() -> None:
    asked = config(evaluation={"expand": ["flips"], "ensemble": {"members": {"x": "y"}}, "choose": [], "pooling": ["mean:2:0.5"]})
    assert not asked.evaluation.chooses
    combining = evaluation_plan(asked).combining
    assert (combining.pool, combining.weights, combining.chooses) == (Pool("mean", 2, 0.5), None, False)


@pytest.mark.parametrize("asked", [{"rerank": {"model": "x", "fusion": True}}, {"evaluation": {"expand": ["templates"]}}])
def test_what_is_chosen_is_not_measured_on_the_split_it_was_chosen_on(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="and need both, and two"):
        config(data__val_split="test", data__test_split="test", **asked)


def test_a_rule_stands_once() -> None:
    ensemble = {"members": {"large": "x"}, "combine": ["logits", "logits"]}
    with pytest.raises(ValueError, match="evaluation.ensemble.combine: a rule is named twice"):
        config(evaluation={"ensemble": ensemble})
    with pytest.raises(ValueError, match=r"evaluation\.pooling: a rule is named twice"):
        config(evaluation={"expand": ["templates"], "pooling": ["max", "max"]})


def test_what_cannot_be_read_is_named_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.ensemble: x:y: expected DIR_OR_HUB_ID"):
        config(evaluation={"ensemble": {"members": {"large": "x:y"}}})
    with pytest.raises(UserError, match=r"^evaluation\.expand: synonyms:nowhere\.txt: there is no file"):
        evaluation_plan(config(evaluation={"expand": ["synonyms:nowhere.txt"]}))


@pytest.mark.parametrize("missing", ["val_split", "test_split"])
def test_to_choose_needs_a_split_to_choose_on_and_one_to_measure_on(missing: str) -> None:
    with pytest.raises(ValueError, match="chosen on data.val_split and measured on data.test_split"):
        config(rerank={"model": "x", "fusion": True}, **{f"data__{missing}": None})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            [["tuned", "based"]],
            r"evaluation.comparisons: no stage is called \['based'\]; there will be \['base', 'tuned', 'base\+blip', 'tu",
        ),
        ([["tuned", "tuned"]], r"evaluation.comparisons: \['tuned'\] would be compared with itself"),
        ([["tuned", "base"], ["tuned", "base"]], r"evaluation.comparisons: \[\('tuned', 'base'\)\] stands twice"),
    ],
)
def test_comparisons_that_say_nothing_are_refused(asked: list[list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_plan(evaluation_plan(config(rerank={"model": "x"}, evaluation__comparisons=asked)), "blip")

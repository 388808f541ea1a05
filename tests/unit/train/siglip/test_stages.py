"""Which arms a job's final report compares, and which comparisons it refuses before the first step."""

from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from rerank.reorder.tuned_stages import Asked
from tests.small_job import SmallWorld
from train.config.job import JobConfig
from train.siglip.stages import check_comparisons, chosen_stages_asked, combining, comparisons


def config(**changes: Any) -> JobConfig:
    return JobConfig.model_validate(SmallWorld(Path("pairs.jsonl"), Path("base")).record(Path("runs"), **changes))


def test_each_step_of_the_job_by_default() -> None:
    assert comparisons(config(), None) == [("tuned", "base")]
    assert comparisons(config(evaluation__models={"large": "x"}), "blip") == [
        *(("tuned", "base"), ("large", "base"), ("base+blip", "base"), ("tuned+blip", "tuned"), ("large+blip", "large")),
        ("tuned+blip", "base+blip"),
    ]
    check_comparisons(config(evaluation__models={"large": "x"}), "blip")


def test_what_is_chosen_on_val_is_compared_with_what_it_was_chosen_from() -> None:
    asked = config(rerank={"model": "x", "fusion": True, "adaptive": True, "adaptive_max_loss": 0.01})
    assert chosen_stages_asked(asked) == Asked(fusion=True, max_loss=0.01)
    assert comparisons(asked, "blip")[-2:] == [("tuned+blip+fused", "tuned+blip"), ("tuned+blip+adaptive", "tuned+blip")]
    check_comparisons(asked, "blip")
    alone = config(rerank={"model": "x", "adaptive": True}, evaluation__comparisons=[["tuned+blip+adaptive", "tuned"]])
    assert chosen_stages_asked(alone) == Asked(fusion=False, max_loss=0.001)
    check_comparisons(alone, "blip")
    with pytest.raises(UserError, match=r"no stage is called \['tuned\+blip\+fused'\]"):
        check_comparisons(config(rerank={"model": "x"}, evaluation__comparisons=[["tuned+blip+fused", "tuned"]]), "blip")


@pytest.mark.parametrize("asked", [{"rerank": {"model": "x", "fusion": True}}, {"evaluation": {"expand": ["templates"]}}])
def test_what_is_chosen_is_not_measured_on_the_split_it_was_chosen_on(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="and need both, and two"):
        config(data__val_split="test", data__test_split="test", **asked)


def test_a_rule_stands_once() -> None:
    ensemble = {"members": {"large": "x"}, "combine": ["logits", "logits"]}
    with pytest.raises(ValueError, match="combine names a rule twice"):
        config(evaluation={"ensemble": ensemble})
    with pytest.raises(ValueError, match=r"evaluation\.pooling names a rule twice"):
        config(evaluation={"expand": ["templates"], "pooling": ["max", "max"]})


def test_what_cannot_be_read_is_named_by_its_key() -> None:
    with pytest.raises(UserError, match=r"^evaluation\.ensemble: x:y: expected DIR_OR_HUB_ID"):
        combining(config(evaluation={"ensemble": {"members": {"large": "x:y"}}}))
    with pytest.raises(UserError, match=r"^evaluation\.expand: synonyms:nowhere\.txt: there is no file"):
        combining(config(evaluation={"expand": ["synonyms:nowhere.txt"]}))


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
        check_comparisons(config(evaluation__comparisons=asked), "blip")

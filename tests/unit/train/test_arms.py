"""Which arms a job's final report compares, and which comparisons it refuses before the first step."""

from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from tests.small_job import SmallWorld
from train.arms import check_comparisons, comparisons
from train.config import JobConfig


def config(**changes: Any) -> JobConfig:
    return JobConfig.model_validate(SmallWorld(Path("pairs.jsonl"), Path("base")).record(Path("runs"), **changes))


def test_each_step_of_the_job_by_default() -> None:
    assert comparisons(config(), None) == [("tuned", "base")]
    assert comparisons(config(evaluation__models={"large": "x"}), "blip") == [
        *(("tuned", "base"), ("large", "base"), ("base+blip", "base"), ("tuned+blip", "tuned"), ("large+blip", "large")),
        ("tuned+blip", "base+blip"),
    ]
    check_comparisons(config(evaluation__models={"large": "x"}), "blip")


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

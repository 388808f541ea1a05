"""The examples in docstrings give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = [
    path.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".")
    for package in ("eval", "rerank", "train", "demo", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_there_are_examples_to_run() -> None:
    assert {"eval.metrics.metrics", "train.loss.reference", "eval.captions"} <= {*MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_show(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0 and outcome.failed == 0

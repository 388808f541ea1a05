"""docs/guarantees.md: every guarantee names tests, and each of them exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def functions_of(path: str) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_guarantee_names_a_test() -> None:
    sections = PAGE.split("\n## ")[1:]
    assert len(sections) > 5
    assert [section.split("\n")[0] for section in sections if "`tests/" not in section] == []


def test_every_test_that_is_named_exists() -> None:
    assert [f"{path}::{name}" for path, name in NAMED if not (ROOT / path).is_file() or name not in functions_of(path)] == []
    assert len(NAMED) == PAGE.count("::"), "a test is named in another form"

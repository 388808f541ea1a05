"""What a reader can take in at once: at most 15 Python files in a folder, at most 8 parameters of a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOST_FILES, MOST_PARAMETERS = 15, 8


def long_parameter_lists(source: str) -> list[tuple[str, int]]:
    """(function, number of parameters) of each function with too many, `self` included."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    counts = [(node.name, len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])) for node in functions]
    return [(name, count) for name, count in counts if count > MOST_PARAMETERS]


@pytest.mark.parametrize("package", ["eval", "rerank", "train"])
def test_folders_hold_at_most_15_python_files(package: str) -> None:
    folders = [ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())]
    counts = {folder.relative_to(ROOT).as_posix(): len([*folder.glob("*.py")]) - len([*folder.glob("__init__.py")]) for folder in folders}
    assert max(counts.values()) > 2
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_functions_take_at_most_8_parameters() -> None:
    files = [path for package in ("eval", "rerank", "train", "demo", "benchmarks") for path in sorted((ROOT / package).rglob("*.py"))]
    found = {
        f"{path.relative_to(ROOT).as_posix()}::{name}": count
        for path in files
        for name, count in long_parameter_lists(path.read_text(encoding="utf-8"))
    }
    assert found == {}, "make a frozen dataclass of what travels together"


def test_the_check_of_parameters_sees_what_it_should() -> None:
    source = "def f(a, b, c, d, /, e, f, g, *args, h, i, **more): ...\nclass A:\n    def g(self, a, b, c, d, e, f, *, g): ..."
    assert long_parameter_lists(source) == [("f", 9)]

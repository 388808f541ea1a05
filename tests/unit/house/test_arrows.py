"""The rooms import in one direction only: eval nothing of ours, rerank eval, train both; `__main__.py` files sit on top."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ARROWS = {"eval": set(), "rerank": {"eval"}, "train": {"eval", "rerank"}}
OURS = {*ARROWS, "demo", "tests", "benchmarks"}


def imported_packages(source: str) -> list[tuple[int, str]]:
    """(line, top-level package) of each absolute import, those inside functions and `import_module("...")` included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.lineno, node.module.split(".")[0]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [(node.lineno, str(word.value).split(".")[0]) for word in node.args[:1] if isinstance(word, ast.Constant)]
    return found


def against_the_arrows(room: str, source: str) -> list[tuple[int, str]]:
    """(line, package) of each import of ours that a file of the room may not make."""
    return [(line, package) for line, package in imported_packages(source) if package in OURS - ARROWS[room] - {room}]


@pytest.mark.parametrize("room", ARROWS)
def test_imports_follow_the_arrows(room: str) -> None:
    files = [path for path in sorted((ROOT / room).rglob("*.py")) if path.name != "__main__.py"]
    assert files or not (ROOT / room).exists(), f"no file was read in {room}/"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {package}"
        for path in files
        for line, package in against_the_arrows(room, path.read_text(encoding="utf-8"))
    ]
    assert wrong == [], f"{room} may import {sorted(ARROWS[room]) or 'nothing'} of ours"


@pytest.mark.parametrize("room", ARROWS)
def test_relative_imports_stay_in_their_room(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > len(path.relative_to(ROOT).parts) - 1
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("eval", "from rerank.scorers.blip.scorer import Blip", ["rerank"]),
        ("eval", "def late():\n    import train.siglip.loop", ["train"]),
        ("eval", "import eval.metrics.metrics, numpy", []),
        ("rerank", "from eval.search.exact import rank", []),
        ("rerank", "import importlib\nimportlib.import_module('train.loss.sigmoid')", ["train"]),
        ("train", "from demo import scenes", ["demo"]),
        ("train", "from rerank import fusion\nfrom eval import metrics", []),
    ],
)
def test_the_check_sees_what_it_should(room: str, source: str, wrong: list[str]) -> None:
    assert [package for _, package in against_the_arrows(room, source)] == wrong

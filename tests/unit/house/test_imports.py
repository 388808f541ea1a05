"""Imports run one way: eval <- rerank <- train, inside train/ from floor to floor downwards, and never in a circle.

Late imports, imports under TYPE_CHECKING and `import_module("...")` count. `__main__.py` files are on top and may import any package.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MAY_IMPORT = {"eval": set(), "rerank": {"eval"}, "train": {"eval", "rerank"}}
OURS = {*MAY_IMPORT, "demo", "tests", "benchmarks"}
FLOORS = [
    {"train.config", "train.loss"},
    {"train.data", "train.optim"},
    {"train.engine"},
    {"train.model", "train.push"},
    {"train.mining", "train.export"},
    {"train.siglip", "train.reranker"},
    {"train.soup", "train.wise", "train.init", "train.study"},
]
"""Lowest first; folders of one floor do not import each other."""
NO_FLOOR = {"train.launch"}
"""What launch.sh runs to set up the environment: imports nothing else of train/, and nothing imports it."""


def imports(source: str) -> list[tuple[int, str]]:
    """(line, dotted module) of each absolute import; of `from a.b import c` both a.b and a.b.c, since c may be a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found += [(node.lineno, node.module), *((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [(node.lineno, str(word.value)) for word in node.args[:1] if isinstance(word, ast.Constant)]
    return found


def files_of(package: str) -> dict[str, str]:
    """Path below the root -> source, of every Python file of a package."""
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted((ROOT / package).rglob("*.py"))}


def module_of(path: str) -> str:
    """eval/search/exact.py -> eval.search.exact; a package's __init__.py -> the package."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def floor_of(module: str) -> tuple[int, str] | None:
    """(floor, folder) of a module below train/; None for train itself and what has no floor."""
    folder = ".".join(module.split(".")[:2])
    return next(((level, folder) for level, folders in enumerate(FLOORS) if folder in folders), None)


def wrong_packages(package: str, source: str) -> list[tuple[int, str]]:
    """(line, package) of each import of ours that a file of the package may not make."""
    wrong = {(line, module.split(".")[0]) for line, module in imports(source)}
    return sorted((line, other) for line, other in wrong if other in OURS - MAY_IMPORT[package] - {package})


def wrong_floors(path: str, source: str) -> list[tuple[int, str]]:
    """(line, module) of each import from a floor above, or from another folder of the same floor."""
    here = floor_of(module_of(path))
    if here is None:
        return []
    there = [(line, module, floor_of(module)) for line, module in imports(source)]
    return [(line, module) for line, module, floor in there if floor and floor[1] != here[1] and floor[0] >= here[0]]


def circles(files: dict[str, str]) -> list[list[str]]:
    """Modules that import one another, directly or through others: one sorted list for each circle."""
    names = {module_of(path) for path in files}
    graph = {module_of(path): {module for _, module in imports(source)} & names - {module_of(path)} for path, source in files.items()}
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen, waiting = set(), list(graph[name])
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting += graph[other]
        reached[name] = seen
    found = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph if name in reached[name]}
    return [list(circle) for circle in sorted(found)]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_in_one_direction(package: str) -> None:
    files = files_of(package)
    assert files
    checked = {path: source for path, source in files.items() if not path.endswith("__main__.py")}
    wrong = [f"{path}:{line} imports {other}" for path, source in checked.items() for line, other in wrong_packages(package, source)]
    assert wrong == [], f"{package} may import {sorted(MAY_IMPORT[package]) or 'nothing'} of ours"


def test_floors_of_train_import_downwards() -> None:
    files = files_of("train")
    folders = {path.rsplit("/", 1)[0].replace("/", ".") for path in files} - {"train"}
    modules = {module_of(path) for path in files if path.count("/") == 1} - {"train", "train.__main__"}
    assert {*folders, *modules} == set.union(*FLOORS) | NO_FLOOR, "each folder of train/ needs a floor (CONTRIBUTING.md)"
    wrong = [
        f"{path}:{line} imports {module}"
        for path, source in files.items()
        if not path.endswith("__main__.py")
        for line, module in wrong_floors(path, source)
    ]
    assert wrong == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    files = {path: source for package in [*MAY_IMPORT, "demo", "benchmarks"] for path, source in files_of(package).items()}
    assert circles(files) == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_relative_imports_stay_in_their_package(package: str) -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, source in files_of(package).items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level > path.count("/")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
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
def test_the_check_of_packages_sees_what_it_should(package: str, source: str, wrong: list[str]) -> None:
    assert [other for _, other in wrong_packages(package, source)] == wrong


@pytest.mark.parametrize(
    ("path", "source", "num_wrong"),
    [
        ("train/loss/sigmoid.py", "def late():\n    from train.data import order", 2),
        ("train/loss/sigmoid.py", "from train.loss import positives", 0),
        ("train/data/order.py", "if TYPE_CHECKING:\n    import train.optim.update", 1),
        ("train/siglip/loop.py", "from train.mining import rules\nimport train.loss.sigmoid", 0),
        ("train/siglip/job.py", "import train.wise", 1),
    ],
)
def test_the_check_of_floors_sees_what_it_should(path: str, source: str, num_wrong: int) -> None:
    assert len(wrong_floors(path, source)) == num_wrong


def test_the_check_of_circles_sees_what_it_should() -> None:
    files = {"a.py": "import b", "b.py": "def late():\n    from c import x", "c.py": "if TYPE_CHECKING:\n    import a", "d.py": "import a"}
    assert circles(files) == [["a", "b", "c"]]
    assert circles({"a.py": "import b", "b.py": "import c", "c.py": ""}) == []

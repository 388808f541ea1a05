"""./launch.sh COMMAND: Python's commands in the environment launch.sh made, and every one that README.md and docs/ show."""

import functools
import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.launch.house import ROOT, TRAINER, House

WITH_CONFIG = ("train", "mine", "reranker", "check", "study")
MODULES = {
    **{command: command for command in ("train", "eval", "rerank", "python")},
    **{command: f"train.{command}" for command in ("reranker", "export", "soup", "wise")},
    "mine": "train.mining",
    "triplets": "train.mining.triplets",
    "embed": "eval.embed",
    "explore": "rerank.explore",
    "runs": "train.launch.runs",
    "study": "train.study",
    "compare": "eval.compare",
    "choices": "eval.choices",
    "convert": "rerank.convert",
    "check": "train",
    "init": "train.init",
    "config": "train.config",
    "environment": "train.launch.environment",
}
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


class Project(House):
    """launch.sh next to the real packages, in a folder of its own: its root is not the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.num_launches = folder, 0
        for name in ("pyproject.toml", "constraints.txt", "configs", "eval", "rerank", "train", "demo"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "launch.sh", folder)

    @functools.cache  # noqa: B019  # one project for the module, and a start takes seconds
    def help_of(self, command: str) -> str:
        """What COMMAND --help prints, having ended well."""
        code, stdout, stderr = self.start(command, "--help").end()
        assert code == 0, stderr
        return stdout + stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project") / "the project"
    folder.mkdir()
    return Project(folder)


@pytest.mark.parametrize("command", MODULES)
def test_help_of_each_command(project: Project, command: str) -> None:
    text = project.help_of(command)
    assert re.search(rf"python -m {re.escape(MODULES[command])} |usage: .*/python", text)


def test_usage_lists_the_commands_and_the_exit_codes(house: House) -> None:
    code, stdout, _ = house.start("--help").end()
    assert code == 0 and re.findall(r"^  ([a-z]+) ", stdout, flags=re.MULTILINE) == [
        *("train", "init", "check", "mine", "triplets", "eval", "compare", "choices", "embed", "rerank", "explore", "export"),
        *("soup", "wise", "study", "reranker", "convert", "runs", "config", "environment", "python"),
    ]
    assert re.findall(r"\b\d+\b", stdout.partition("Exit codes:")[2]) == ["0", "2", "3", "4", "5", "6", "130", "143"]


def test_paths_are_as_seen_from_the_folder_of_the_call(project: Project, tmp_path: Path) -> None:
    """The user's folder may hold a file with a package's name."""
    here = tmp_path / "some where"
    here.mkdir()
    for name in ("eval.py", "train.py"):
        (here / name).write_text("raise SystemExit(9)\n")
    (here / "model").symlink_to(ROOT / "demo" / "models" / "siglip-base")
    (here / "pairs.parquet").symlink_to(ROOT / "demo" / "data" / "watch.parquet")
    words = ["--model", "model", "--data", "pairs.parquet", "--split", "watch", "--column", "group=scene", "--output", "out/deep"]
    code, stdout, stderr = project.start("eval", *words, "--num-workers", "0", cwd=here).end()
    assert code == 0, stderr
    assert (here / "out" / "deep" / "report.json").is_file() and "out/deep/report.html" in stdout
    code, stdout, stderr = project.start("compare", "out/deep", "out/deep", cwd=here).end()
    assert code == 0 and "no evidence" in stdout, stderr
    (here / "own script.py").write_text("import sys, os, eval.metrics.metrics\nprint(os.getcwd(), sys.argv[1:])\nsys.exit(7)\n")
    (here / "eval.py").unlink()
    code, stdout, _ = project.start("python", "own script.py", "two words", cwd=here).end()
    assert (code, stdout) == (7, f"{here} ['two words']\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "--model", "nowhere", "--data", "none.csv", "--output", "out"], "none.csv"),
        (["soup", "nowhere", "nowhere", "--output", "out"], "nowhere"),
        (["rerank", "--frobnicate"], "usage"),
        (["train"], "usage"),
        (["mine"], "CONFIG.yaml"),
    ],
)
def test_exit_code_2_passes_through(project: Project, tmp_path: Path, words: list[str], said: str) -> None:
    code, _, stderr = project.start(*words, cwd=tmp_path).end()
    assert code == 2 and said in stderr


@pytest.mark.parametrize("command", WITH_CONFIG)
def test_a_configuration_is_found_from_both_folders_and_read_in_ours(house: House, tmp_path: Path, command: str) -> None:
    for name in ("mining", "reranker", "study"):
        (house.folder / "train" / f"{name}.py").write_text(TRAINER)
    (tmp_path / "own.yaml").touch()
    for name, config in (("own.yaml", tmp_path / "own.yaml"), ("configs/demo.yaml", house.folder / "configs" / "demo.yaml")):
        launch = house.start(command, name, "exit=5", "a=b c", cwd=tmp_path)
        code, _, stderr = launch.end()
        start = launch.note("start")
        assert code == 5, stderr
        added = ["--check-images"] if command == "check" else []
        assert (start["argv"], start["cwd"]) == ([str(config), "exit=5", "a=b c", *added], str(house.folder))
        assert start["pid"] == launch.process.pid, "python should have taken the shell's place"
    code, _, stderr = house.start(command, "nowhere.yaml", cwd=tmp_path).end()
    expected = f"expected a configuration file or a data set after {command}; there is no file nowhere.yaml in {tmp_path}"
    assert code == 2 and expected in stderr


@pytest.mark.parametrize(
    ("word", "near"),
    [
        *(("evla", ["eval"]), ("evaluate", ["eval"]), ("tets", ["test"]), ("mining", ["mine"]), ("chocies", ["choices"])),
        *(("rerrank", ["rerank"]), ("frobnicate", []), ("configs/nowhere.yaml", [])),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest(house: House, word: str, near: list[str]) -> None:
    code, stdout, stderr = house.start(word, "--output", "x").end()
    assert code == 2 and stdout == "" and f"there is no command and no file {word} in " in stderr
    assert re.findall(r"did you mean (\w+)\?", stderr) == near


def shown_commands(page: Path) -> Iterator[str]:
    """Every command of launch.sh that a page shows, in a block of code or in a sentence."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    block = re.compile(r"^```\w*\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    lines = [line for found in block.findall(text) for line in found.splitlines()]
    for line in lines + re.findall(r"`(\./launch\.sh[^`]*)`", block.sub("", text)):
        if "./launch.sh" in line:
            yield line[line.index("./launch.sh") :].partition(" #")[0].strip()


def test_the_readme_begins_with_the_two_commands() -> None:
    first = re.search(r"^## Try it.*?^```console\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert first is not None
    assert [line.partition("#")[0].strip() for line in first.group(1).splitlines()] == ["./launch.sh", "./launch.sh test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_a_page_shows_is_one(project: Project, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    bare = re.findall(r"^python -m (?:eval|rerank|train)\b.*", text, flags=re.MULTILINE)
    assert not bare, "it does not run outside the environment: ./launch.sh COMMAND does"
    commands = list(shown_commands(page))
    assert commands or page.name != "README.md"
    for command in commands:
        _, *words = shlex.split(re.sub(r"[][]|\.\.\.", " ", command))
        first = words[0] if words else "configs/demo.yaml"
        if first in ("test", "--help", "--version", "COMMAND"):
            continue
        if first == "python":
            assert words[1:2] != ["-m"] or importlib.util.find_spec(words[2]), command
            continue
        if first not in MODULES:
            assert first == "CONFIG.yaml" or first.startswith("PATH/TO/") or (ROOT / first).is_file(), command
            first = "train"
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", project.help_of(first)), f"{command}: no option {option}"


@pytest.mark.slow
def test_a_run_is_read_from_any_folder(project: Project, tmp_path: Path) -> None:
    """Its configuration's paths are relative to the project."""
    runs = project.folder / "runs"
    few = [f"train.{key}=1" for key in ("max_steps", "eval_every_steps", "checkpoint_every_steps")]
    off = ["mining=null", "rerank=null", "watch=[]", "choices=null", "data.test_split=null", "train.batch_size=4", "data.num_workers=0"]
    code, _, stderr = project.start("configs/demo.yaml", "name=short", *few, *off, cwd=tmp_path).end()
    assert code == 0, stderr
    asked = [os.path.relpath(runs / "short", tmp_path), "--output", "out"]
    code, stdout, stderr = project.start("export", *asked, cwd=tmp_path).end()
    assert code == 0, stderr
    assert "exported to out" in stdout and (tmp_path / "out" / "model.safetensors").is_file()

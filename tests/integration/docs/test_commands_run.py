"""What README.md and docs/ show runs: each page's commands and Python, in the page's order, in a folder where the names they use exist.

Commands run as they stand; what is small is that folder (`World`), and what they are given besides is in `added`.
"""

import ast
import re
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub_server import TOKEN, go_online, serving
from tests.integration.docs.shown import PAGES, ROOT, Block, Command, blocks, commands
from tests.integration.docs.world import World
from tests.integration.launch.house import House, Launch, clean_environment
from tests.integration.launch.test_commands import MODULES
from tests.nursery import Nursery
from train.config.job import JobConfig
from train.config.load import load_run_config, read_yaml
from train.config.reranker import RerankerConfig, is_reranker
from train.config.yaml_text import parse_yaml
from train.study.config import StudyConfig

HINT = (
    "This command of a page fails in the folder of tests/integration/docs/world.py. If a name in it does not exist there, use one that "
    "other pages use, or write it there. What no test can run (several GPUs, a network, an installation) belongs into a block of `console`."
)
ELSEWHERE = {"python.md": "tests/unit/house/test_python_page.py"}
"""Pages whose Python another test runs."""
SLOW = {
    "training.md": "tests/integration/launch/test_two_processes.py",
    "study.md": "tests/integration/train/test_study.py",
    "forgetting.md": "tests/unit/train/test_wise.py",
    "tuning-the-reranker.md": "tests/integration/train/test_reranker_job.py",
    "explore.md": "tests/unit/rerank/explore/test_page.py",
    "export-forms.md": "tests/unit/train/export/test_forms.py",
    "adaptive-reranking.md": "tests/unit/rerank/reorder/test_skipping.py",
    "ensembles.md": "tests/integration/train/test_combined_job.py",
    "expansion.md": "tests/integration/train/test_expanded_job.py",
    "score-interpolation.md": "tests/unit/rerank/reorder/test_fusion.py",
    "choices.md": "tests/integration/train/test_choices_job.py",
    "nnn.md": "tests/unit/rerank/test_nnn.py",
    "calibration.md": "tests/unit/rerank/answers/test_matches.py",
    "mining-how-to.md": "tests/unit/train/mining/test_pairs.py",
}
"""Pages that take longest, and the tests that run their commands in short."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def bash_of(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "bash"]


def python_of(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python" and page.name not in ELSEWHERE]


WITH_CODE = [
    pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] * (page.name in SLOW))
    for page in PAGES
    if bash_of(page) or python_of(page)
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> World:
    return World.make(tmp_path_factory.mktemp("docs"), nursery)


@pytest.fixture
def world(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy for one page, in which this process is as well."""
    copied = made.copy(tmp_path)
    monkeypatch.chdir(copied.folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(copied.hub))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return copied


@pytest.mark.parametrize("page", WITH_CODE)
def test_a_page_runs(page: Path, world: World, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    missing: list[str] = []
    for block in blocks(page):
        if block.language == "bash":
            for command in commands(block):
                carry_out(command, world, nursery, monkeypatch)
        elif block in python_of(page):
            missing += run_python(block, names)
    if missing:
        pytest.skip(f"all but the Python that imports {', '.join(missing)}, which cannot be imported here")


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE)
def test_a_page_runs_as_it_is_given(page: Path, world: World) -> None:
    """The same with launch.sh, torchrun and accelerate themselves, a process for each command."""
    for block in bash_of(page):
        for command in commands(block):
            module, words, _ = as_module(command)
            if module not in ("pytest", "rerank.explore") and ("--push" not in words or "--dry-run" in words):
                code, stdout, stderr = Shell(world).launch(command, words).end()
                assert code == 0, f"{command}\n{HINT}\n{stdout}\n{stderr}"
                check_written(command, words, world, stdout + stderr)


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page) if block.language == "yaml"], ids=str)
def test_keys_that_a_page_shows_are_read(block: Block, tmp_path: Path) -> None:
    """A part of a configuration is put into the demo's, in the place of its sections but `data`."""
    record = parse_yaml(block.text)
    if "systems" in record:
        StudyConfig.model_validate(record)
        return
    kind: Any = RerankerConfig if is_reranker(record) else JobConfig
    if kind is JobConfig:
        demo = read_yaml(ROOT / "configs" / "demo.yaml")
        record = demo | record | {"data": demo["data"] | record.get("data", {})}
    path = tmp_path / "shown.yaml"
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    load_run_config(kind, path)


def test_pages_that_are_run_elsewhere_are_pages() -> None:
    names = {page.name for page in PAGES}
    assert {*ELSEWHERE, *SLOW} <= names and all((ROOT / test).is_file() for test in (*ELSEWHERE.values(), *SLOW.values()))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("./launch.sh wise RUN --keep best", ["./launch.sh", "wise", "RUN", "--keep", "best"]),
        ("./launch.sh a x=[1,2] '.[x] #2'", ["./launch.sh", "a", "x=[1,2]", ".[x] #2"]),
    ],
)
def test_a_line_is_split_as_a_shell_splits_it(line: str, expected: list[str]) -> None:
    block = Block(ROOT / "README.md", 1, "bash", f'A="b c" {line} \\\n  --more    # and why\n\n# a comment\n')
    (command,) = commands(block)
    assert command == Command("README.md:1", {"A": "b c"}, (*expected, "--more"))


@pytest.mark.parametrize("line", ["pip install x", "./launch.sh eval ...", "./launch.sh wise RUN [--more x]", "cd a && ./launch.sh"])
def test_a_line_that_cannot_run_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"README.md:7: `.*` cannot be run by a test"):
        [*commands(Block(ROOT / "README.md", 7, "bash", line))]


def carry_out(command: Command, world: World, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command, and look for what it is asked to write."""
    module, words, num = as_module(command)
    if module == "pytest":
        return  # the command that runs this very test
    if "--push" in words and "--dry-run" not in words:
        return push(command, words, world, monkeypatch)
    if module == "rerank.explore":
        return explore(command, words, world, nursery)
    if num == 1:
        started = [nursery.start(module, words, env=world.variables(), cwd=world.folder)]
    else:
        started = nursery.start_ranks(module, words, num, env=world.variables(), cwd=world.folder)
    codes, output = [child.wait_for_code() for child in started], started[0].output()
    assert codes == [0] * num, f"{command}\n{HINT}\n{output}"
    check_written(command, words, world, output)


def check_written(command: Command, words: list[str], world: World, output: str) -> None:
    for option, place in zip(words, words[1:], strict=False):
        if option == "--output":
            assert (world.folder / place).exists(), f"{command}: it ended well and wrote no {place}\n{output}"


def as_module(command: Command) -> tuple[str, list[str], int]:
    """Module, arguments and number of processes of a command, as launch.sh, torchrun and accelerate make them of it."""
    first, *given = command.words
    words = [word for word in given if word != "--openvino" or find_spec("openvino")]
    if first in ("torchrun", "accelerate"):
        at = words.index("-m")
        (num,) = re.findall(r"--n(?:proc-per-node|um_processes)[ =](\d+)", " ".join(words[:at]))
        return words[at + 1], words[at + 2 :], int(num)
    num = 2 if "cpu-2.yaml" in command.variables.get("LAUNCH_ARGS", "") else 1
    if first == "./launch.sh" and words[:1] == ["python"]:
        first, *words = words
    if first == "python":
        assert words[0] == "-m", f"{command}: expected a module"
        return words[1], words[2:], num
    if not words or words[0] == "test":
        return ("pytest", words[1:], num) if words else ("train", ["configs/demo.yaml"], num)
    if words[0] not in MODULES:
        return "train", [*words, *["curves=false"] * (Path(words[0]).suffix != ".yaml")], num
    module = MODULES[words[0]]
    return module, [*words[1:], *added(module), *["--check-images"] * (words[0] == "check")], num


def added(module: str) -> list[str]:
    """What a command is given besides."""
    return {"train.study": ["--seeds", "1"], "rerank.explore": ["--port", "0"]}.get(module, [])


class Shell(House):
    """launch.sh of a world."""

    def __init__(self, world: World) -> None:
        self.folder, self.num_launches, self.world = world.folder, 0, world

    def launch(self, command: Command, words: list[str]) -> Launch:
        """Start a command as it is given; `words` are its arguments where launch.sh does not take it."""
        variables = command.variables | self.world.variables() | {"OMP_NUM_THREADS": "1"}
        if command.words[0] == "./launch.sh":
            given = [word for word in command.words[1:] if word in words or word != "--openvino"]
            return self.start(*given, *(word for word in words if word not in given), **variables)
        module = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}.get(command.words[0])
        skipped = {"accelerate": 2}.get(command.words[0], 1)
        words = [sys.executable, *(["-m", module] if module else []), *command.words[skipped:]]
        return Launch(words, self.folder, clean_environment() | variables | {"PYTHONPATH": str(ROOT)}, self.folder)


def run_python(block: Block, names: dict[str, Any]) -> list[str]:
    """Run a block with what the blocks before it left; returns the packages that it needs and that are not here."""
    tree = ast.parse(block.text)
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    missing = [name for name in imported if not find_spec(name.partition(".")[0])]
    if not missing:
        exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
    return missing


def push(command: Command, words: list[str], world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send an export to a stand-in of the hub: `--update` in the place of one that was sent before."""
    from train.export.__main__ import main

    with serving() as hub, monkeypatch.context() as patched:
        go_online(patched, hub.endpoint, world.folder / "online")
        patched.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patched.setenv("HF_TOKEN", TOKEN)
        hub.owners.add("ORG")
        hub.written = world.folder.parent / f"written-{hub.endpoint.rpartition(':')[2]}"
        for times in range(1, 2 + ("--update" in words)):
            assert main([word for word in words if times == 2 or word != "--update"]) == 0, command
            assert len(hub.messages) == times


def explore(command: Command, words: list[str], world: World, nursery: Nursery) -> None:
    """Start a page, and end it as its last line says."""
    pytest.importorskip("gradio")
    server = nursery.start("rerank.explore", words, env=world.variables(), cwd=world.folder)
    server.wait_until(lambda: server.log.exists() and re.search("Ctrl-C ends it|error: ", server.output()) is not None)
    server.kill(signal.SIGINT)
    assert server.wait_for_code() == 130, f"{command}\n{HINT}\n{server.output()}"

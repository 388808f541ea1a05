"""--help of every command: it imports nothing heavy, ends quietly, says each option's default and range, and ends with an example."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from eval.command_line import CommandParser, WholeNumber

ROOT = Path(__file__).parents[3]
WORDS = {
    "eval.__main__": "eval",
    "eval.choices.__main__": "choices",
    "eval.compare.__main__": "compare",
    "eval.embed.__main__": "embed",
    "eval.convert_choices": "python -m eval.convert_choices",
    "rerank.__main__": "rerank",
    "rerank.convert.__main__": "convert",
    "rerank.explore.__main__": "explore",
    "train.__main__": "train",
    "train.config.__main__": "config",
    "train.export.__main__": "export",
    "train.init.__main__": "init",
    "train.launch.environment": "environment",
    "train.launch.runs": "runs",
    "train.mining.__main__": "mine",
    "train.mining.triplets": "triplets",
    "train.reranker.__main__": "reranker",
    "train.soup.__main__": "soup",
    "train.study.__main__": "study",
    "train.wise.__main__": "wise",
}
"""Module -> what launch.sh calls it."""
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "matplotlib",
    "pandas",
    "pyarrow",
    "PIL",
    "rich",
    "jinja2",
    "accelerate",
    "huggingface_hub",
    "gradio",
)
ALL_IN_ONE_PROCESS = """
import json, sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
found = {}
for name in json.loads(sys.argv[1]):
    module, said = import_module(name), StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        module.make_parser().parse_args(["--help"])
    found[name] = [[heavy for heavy in json.loads(sys.argv[2]) if heavy in sys.modules], said.getvalue()]
print(json.dumps(found))
"""


def parser_of(module: str) -> CommandParser:
    return import_module(module).make_parser()


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


def test_help_imports_nothing_heavy() -> None:
    """All in one process: what none of them imports, each of them does not."""
    words = [sys.executable, "-c", ALL_IN_ONE_PROCESS, json.dumps(list(WORDS)), json.dumps(HEAVY)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert {name: heavy for name, (heavy, _) in found.items() if heavy} == {}
    assert all(text.startswith("usage: python -m ") and "\nexample:\n  ./launch.sh " in text for _, text in found.values())


@pytest.mark.parametrize("module", WORDS)
def test_the_example_is_a_command_line_of_the_command(module: str) -> None:
    parser = parser_of(module)
    launch, *words = shlex.split(parser.example)
    command = WORDS[module].split()
    assert (launch, words[: len(command)]) == ("./launch.sh", command)
    parse = parser.parse_intermixed_args if "key.path=value" in parser.format_usage() else parser.parse_args
    parse(words[len(command) :])


@pytest.mark.parametrize("module", WORDS)
def test_every_option_says_its_default_and_every_number_its_range(module: str) -> None:
    parser = parser_of(module)
    for option in options_of(parser):
        name, text = option.option_strings[-1], str(option.help)
        assert option.required or re.search(r"\(default\b|default[s:]? ", text), f"{module} {name}: no default in {text!r}"
        if isinstance(option.default, (int, float)) and not isinstance(option.default, bool):
            assert f"default {option.default}" in text, f"{module} {name}: {text!r} does not say {option.default}"
        takes_number = option.type in (int, float) or isinstance(option.type, WholeNumber)
        if takes_number:
            assert re.search(r"above \d|\d or more|\d to \d|from \d", text), f"{module} {name}: no range in {text!r}"


def test_no_option_wants_what_it_does_not_say(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--top-k", "0"], ["--pages", "-1"], ["--num-workers", "-1"], ["--num-workers", "two"]):
        with pytest.raises(SystemExit) as ended:
            parser_of("rerank.__main__").parse_args(["--model", "m", "--images", "i", "--output", "o.csv", *words])
        least = "1 or more" if words[0] == "--top-k" else "0 or more"
        assert ended.value.code == 2 and f"{words[0]}: expected a whole number, {least}; found '{words[1]}'" in capsys.readouterr().err


def test_help_whose_reader_has_left_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "eval", "--help"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")

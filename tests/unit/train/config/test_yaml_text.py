"""train/config/yaml_text.py and what every reader of a configuration refuses: twice, ambiguous, too deep, too large, too long."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.__main__ import run as train
from train.config.load import ConfigError, load_config, load_run_config, read_run
from train.config.reranker import RerankerConfig
from train.config.yaml_text import YamlFault, parse_yaml
from train.engine.folder import claim_folder
from train.reranker.__main__ import run as train_reranker
from train.soup.ingredients import read_ingredient

ROOT = Path(__file__).parents[4]
TRAIN = "{max_steps: 1000, batch_size: 8, learning_rate: 0.1, eval_every_steps: 5, checkpoint_every_steps: 5}"
GOOD = f"name: job\nmodel: {{base: somewhere}}\ndata: {{source: pairs.csv}}\ntrain: {TRAIN}\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
REFUSED = [
    ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is there twice, first in line 1"),
    ("a: {b: 1, c: 2, b: 3}", "line 1: 'b' is there twice"),
    ("a:\n  - b: 1\n    'b': 2\n", "line 3: 'b' is there twice, first in line 2"),
    ("a: 017", "line 1: 017 would be read as an octal number"),
    ("a: [0, -017]", "-017 would be read as an octal number"),
    ("\na: 1:30", "line 2: 1:30 would be read as a number to base 60"),
    ("a: 1:30.5", "1:30.5 would be read as a number to base 60"),
    ("a: 12345678901234567890123", "a whole number of more than 18 digits"),
    ("a: " + "1" * 9000, "a whole number of more than 18 digits"),
    ("[" * 100_000, "nested more than 20 deep"),
    ("{b: " * 5_000, "nested more than 20 deep"),
    ("- " * 50_000 + "a", "nested more than 20 deep"),
    (BOMB, "its aliases stand for more than 20,000 values"),
    ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3_000)), "nested more than 20 deep"),
    ("a: &a [*a]", "it contains itself, by an alias"),
    ("a: [" + "x," * 300_000 + "]", "more than 20,000 values"),
    ("a: " + "x " * 600_000, "longer than 1,048,576 characters"),
    ("a: !!int foo", "the tag tag:yaml.org,2002:int is not read here"),
    ("a: !!python/object/apply:os.system [echo]", "is not read here"),
    ("? [a]\n: b", "expected a key, found a list or a mapping"),
    ("a: \x00", "not valid YAML"),
    ("a: 1\n---\nb: 2", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_yaml_that_is_twice_there_ambiguous_or_a_bomb_is_refused_at_once(text: str, words: str) -> None:
    with pytest.raises(YamlFault) as caught:
        parse_yaml(text)
    assert words in str(caught.value) and len(str(caught.value)) < 500


def test_what_is_left_is_read_as_before() -> None:
    text = "a: &a {x: 1, y: 1_000}\nb: {<<: *a, x: 2}\nc: [off, null, 1e-5, 0x1F, 0, -3, 2.5, '017', \"1:30\"]\nd: 2024-13-45\n"
    assert parse_yaml(text) == {
        "a": {"x": 1, "y": 1000},
        "b": {"x": 2, "y": 1000},
        "c": [False, None, "1e-5", 31, 0, -3, 2.5, "017", "1:30"],
        "d": "2024-13-45",  # PyYAML alone would end with a ValueError: there is no such month
    }
    assert parse_yaml("") is None
    for path in (*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/accelerate/*.yaml")):
        assert parse_yaml(path.read_text()) == yaml.safe_load(path.read_text())


def of_run(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A reader of a run's folder, given its config.yaml."""
    return lambda path: read(path.parent)


def refused_by_accelerate(path: Path) -> None:
    """The reader that launch.sh starts for --config_file of LAUNCH_ARGS."""
    done = subprocess.run(
        [sys.executable, "-m", "train.launch.configuration", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    raise ConfigError(done.stderr)


READERS: dict[str, Callable[[Path], Any]] = {
    "train": load_config,
    "reranker": lambda path: load_run_config(RerankerConfig, path),
    "the command line": lambda path: load_config(path.with_name("good.yaml"), [f"model={{base: x, {path.read_text().strip()}}}"]),
    "a run to be exported": of_run(read_run),
    "an ingredient of a soup": of_run(lambda folder: read_ingredient(str(folder))),
    "a run to be resumed": lambda path: _resumed(path),
    "LAUNCH_ARGS": refused_by_accelerate,
}


def _resumed(path: Path) -> None:
    (path.parent / "finished.json").write_text("{}")
    config = load_config(path.with_name("good.yaml"), [f"name={path.parent.name}", f"runs_folder={path.parents[1]}"])
    claim_folder(config)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_a_configuration_refuses_the_same(tmp_path: Path, reader: str) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    path = tmp_path / "config.yaml"
    for text, words in (("lora: 017", "octal"), ("lora: 1, lora: 2" if "line" in reader else "lora: 1\nlora: 2", "twice")):
        path.write_text(text)
        with pytest.raises(ConfigError if reader != "a run to be resumed" else Exception, match=words):
            READERS[reader](path)


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "true", "[0.9, off]"])
@pytest.mark.parametrize(
    ("key", "is_rule"),
    [
        *((key, True) for key in ("mining.margin", "mining.max_score", "train.max_grad_norm", "train.warmup_steps", "mining")),
        *((key, False) for key in ("train.betas", "seed", "train.learning_rate", "mining.pool_top_k")),
    ],
)
def test_off_on_yes_and_no_are_refused_where_a_number_is_due(tmp_path: Path, key: str, is_rule: bool, word: str) -> None:
    (tmp_path / "job.yaml").write_text(GOOD + "mining: {mine_every_steps: 5}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "job.yaml", [f"{key}={word}"])
    if not word.startswith("[") or key == "train.betas":
        assert f"{key}: expected no truth value" in str(caught.value)
        assert ("write null for no such rule" in str(caught.value)) == is_rule


def test_off_is_fine_where_true_or_false_is_due(tmp_path: Path) -> None:
    sections = "rerank: {model: blip, pair_scores: off, fusion: no}\nmining: {mine_every_steps: 5, margin: null}\n"
    (tmp_path / "job.yaml").write_text(GOOD + sections)
    loaded = load_config(tmp_path / "job.yaml", ["train.deterministic=on"])
    assert loaded.rerank is not None and (loaded.rerank.pair_scores, loaded.rerank.fusion) == (False, False)
    assert loaded.train.deterministic
    assert loaded.mining is not None and loaded.mining.margin is None


LONG = "x" * 300


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"name={LONG}", "name: String should have at most 100 characters"),
        (f"watch=[{{name: {LONG}, source: x}}]", "watch.0.name: String should have at most 100"),
        (f"evaluation.models={{{LONG}: x}}", "String should have at most 100"),
        (f"runs_folder=runs/{LONG}/x", "runs_folder: longer than a name can be"),
        (f"model.base={LONG}", "model.base: longer than a name can be"),
        (f"data.source=data/{LONG}.csv", "data.source: longer than a name can be"),
        (f"data.columns={{image: {LONG}}}", "data.columns: longer than a name can be"),
        (f"evaluation.expand=[{LONG}]", "evaluation.expand: longer than a name can be"),
        ('data.source="a\\0b"', "data.source: expected a text without the character 0"),
        ("train.max_steps='12345678901234567890123'", "train.max_steps: expected a whole number up to"),
        ("train.max_steps=100000000000000000", "train.max_steps: expected a whole number up to"),
        ("train.max_steps=12345678901234567890123", "more than 18 digits"),
        ("train.learning_rate=1e999", "finite"),
        (f"{LONG}=1", "unknown key"),
    ],
)
def test_names_of_300_letters_and_numbers_of_23_digits_are_refused_at_once(tmp_path: Path, override: str, words: str) -> None:
    (tmp_path / "job.yaml").write_text(GOOD)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "job.yaml", [override])
    assert words in str(caught.value) and len(str(caught.value)) < 600


def test_a_fault_on_the_command_line_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"

    def message(text: str, *overrides: str) -> str:
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        return str(caught.value)

    given = message(GOOD, "train.max_step=5", "seed=1")
    assert "train.max_step: unknown key; did you mean max_steps? (the command line gives train.max_step=5)" in given
    assert str(path) not in given and "seed=1" not in given
    of_file = message(GOOD.replace("max_steps", "max_step"), "seed=1")
    assert str(path) in of_file and "command line" not in of_file
    both = message(GOOD.replace("name: job", "name: ''"), "seed=-1")
    assert str(path) in both and both.count("the command line gives seed=-1") == 1
    contradiction = message(GOOD, "train.warmup_steps=1000")
    assert "warmup_steps 1000 leaves nothing of max_steps 1000 (the command line gives train.warmup_steps=1000)" in contradiction
    assert "given on the command line: line 1: 017" in message(GOOD, "seed=017")


@pytest.mark.parametrize("command", [train, train_reranker])
def test_a_refused_configuration_ends_with_2_and_no_traceback(
    tmp_path: Path, command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("a: 1\na: 2\n", "[" * 100_000, BOMB, "name: 017\n"):
        (tmp_path / "job.yaml").write_text(text)
        assert command([str(tmp_path / "job.yaml")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "program",
    [
        "from train.config.__main__ import main; main = lambda run=main: run([])",
        "from eval.command import run_command; main = lambda: run_command(lambda: print('figures'), loads_models=False)",
        "from eval.command import run_command; main = lambda: run_command(lambda: print('x' * 999_999), loads_models=False)",
    ],
)
def test_a_command_whose_reader_has_left_ends_quietly(program: str) -> None:
    """As after `| head`: no traceback, no "Exception ignored", and 141, which is 128 + SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", f"import sys; {program}; sys.exit(main())"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 141)

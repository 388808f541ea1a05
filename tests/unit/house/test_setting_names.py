"""A fault of the data names the setting as the person knows it: a command's options, a configuration's keys, and never the other's."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eval.choices import __main__ as choices
from eval.choices.choice_set import read_choices
from eval.errors import UserError
from eval.processes import Processes
from train.config.load import load_config, load_run_config
from train.config.reranker import RerankerConfig
from train.data.splits import load_data
from train.reranker.job import load_reranker_data

ROOT = Path(__file__).parents[3]
MODEL = str(ROOT / "demo" / "models" / "siglip-base")
BLIP = str(ROOT / "demo" / "models" / "blip-itm")
Refuse = Callable[[Path, dict[str, str]], None]


def on_this_process(module: Any, words: list[str]) -> None:
    module.run(module.parse(words), Processes(), torch.device("cpu"))


def with_options(before: list[str], settings: dict[str, str]) -> list[str]:
    columns = [word for ours, theirs in settings.items() if ours in ("image", "caption") for word in ("--column", f"{ours}={theirs}")]
    split = ["--split", settings["split"]] if "split" in settings else []
    root = ["--image-root", settings["root"]] if "root" in settings else []
    return [*before, *columns, *split, *root]


def eval_command(source: Path, settings: dict[str, str]) -> None:
    from eval import __main__ as command

    out = str(source.parent / "out")
    on_this_process(command, with_options(["--model", MODEL, "--data", str(source), "--output", out], settings))


def rerank_command(source: Path, settings: dict[str, str]) -> None:
    from rerank import __main__ as command

    out = str(source.parent / "out.csv")
    on_this_process(command, with_options(["--model", MODEL, "--images", str(source), "--output", out], settings))


def soup_command(source: Path, settings: dict[str, str]) -> None:
    from train.soup import __main__ as command

    shutil.copytree(MODEL, source.parent / "other", dirs_exist_ok=True)
    words = [MODEL, str(source.parent / "other"), "--data", str(source), "--output", str(source.parent / "soup")]
    command.run(command.parse(with_options(words, settings)))


def job(source: Path, settings: dict[str, str], **more: Any) -> dict[str, Any]:
    columns = {ours: settings[ours] for ours in ("image", "caption") if ours in settings}
    split = settings.get("split")
    data = {"source": str(source), "columns": columns, "train_split": split, "val_split": split, "test_split": None}
    data |= {"image_root": settings["root"]} if "root" in settings else {}
    train = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-3, "eval_every_steps": 1, "checkpoint_every_steps": 1}
    return {"name": "a", "data": data, "train": train, **more}


def written(source: Path, record: dict[str, Any]) -> Path:
    path = source.parent / "job.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def train_command(source: Path, settings: dict[str, str]) -> None:
    load_data(load_config(written(source, job(source, settings, model={"base": MODEL}))))


def reranker_command(source: Path, settings: dict[str, str]) -> None:
    record = job(source, settings, miner=MODEL, model={"base": BLIP}, negatives={"captions_per_image": 1, "drawn_from": 2})
    load_reranker_data(load_run_config(RerankerConfig, written(source, record)))


def retention_set(source: Path, settings: dict[str, str]) -> None:
    good = source.parent / "good.jsonl"
    good.write_text("".join(json.dumps({"image": f"{n}.png", "caption": f"a thing number {n}"}) + "\n" for n in range(2)))
    record = job(good, {}, model={"base": MODEL})
    own = record["data"] | job(source, settings)["data"]
    watched = {"name": "old", "source": own["source"], "split": settings.get("split"), "columns": own["columns"], "on_drop": "report"}
    watched |= {"image_root": settings["root"]} if "root" in settings else {}
    load_data(load_config(written(source, record | {"watch": [watched]})))


OPTIONS = {"source": "--data", "columns": "--column", "column": "--column {}=", "root": "--image-root", "splits": "--split"}
KEYS = {"source": "data.source", "columns": "data.columns", "column": "data.columns.{}=", "root": "data.image_root"}
KEYS |= {"splits": "data.train_split, data.val_split and data.test_split"}
WATCH = {name: key.replace("data.", "watch.") for name, key in KEYS.items()} | {"splits": "watch.split"}
COMMANDS: dict[str, tuple[Refuse, dict[str, str]]] = {
    "eval": (eval_command, OPTIONS),
    "rerank": (rerank_command, OPTIONS | {"source": "--images"}),
    "soup": (soup_command, OPTIONS),
    "train": (train_command, KEYS),
    "reranker": (reranker_command, KEYS),
    "watch": (retention_set, WATCH),
}
GOOD = {"image": "0.png", "caption": "a thing"}
FAULTS: dict[str, tuple[list[dict[str, Any]] | None, dict[str, str], Callable[[dict[str, str]], str]]] = {
    "no such file": (None, {}, lambda names: f"no such file or folder ({names['source']})"),
    "a column that is not there": ([GOOD], {"image": "picture"}, lambda names: f"{names['columns']} maps image to 'picture'"),
    "no column of images": ([{"photo": "0", "caption": "a"}], {}, lambda names: f"{names['column'].format('image')}NAME"),
    "no column of captions": ([{"image": "0.png", "words": "a"}], {}, lambda names: f"{names['column'].format('caption')}NAME"),
    "a picture that is not there": ([{"image": "9.png", "caption": "a thing"}], {}, lambda names: f"Is {names['root']} right?"),
    "a picture outside": ([{"image": "../9.png", "caption": "a thing"}], {"root": "."}, lambda names: f"set {names['root']}"),
    "no such split": ([GOOD | {"split": "dev"}], {"split": "test"}, lambda names: f"Name one of these with {names['splits']}"),
    "two ids": (
        [GOOD | {"id": "1"}, GOOD | {"id": "2"}],
        {},
        lambda names: f"{names['column'].format('id')}NAME_OF_THE_IMAGE_COLUMN",
    ),
}
"""Fault -> (rows of the manifest, settings, what must be said)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    made = tmp_path_factory.mktemp("names")
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(made / f"{number}.png")
    return made


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_message_names_the_commands_own_settings(folder: Path, command: str, fault: str) -> None:
    refuse, names = COMMANDS[command]
    rows, settings, expected = FAULTS[fault]
    source = folder / "m.jsonl"
    if rows is None:
        source = folder / "nothing.jsonl"
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as caught:
        refuse(source, settings | ({"root": str(folder)} if "root" in settings else {}))
    message = str(caught.value)
    assert caught.value.exit_code == 2 and expected(names) in message
    others = {"watch": r"\bdata\.[a-z]| --[a-z]", "train": r" --[a-z]|\bwatch\.", "reranker": r" --[a-z]|\bwatch\."}
    assert not re.search(others.get(command, r"\b(data|watch)\.[a-z]"), message), message


def test_a_choice_set_names_the_image_root(folder: Path) -> None:
    path = folder / "choices.jsonl"
    path.write_text(json.dumps({"image": "9.png", "caption": "a thing", "false_captions": ["another"]}) + "\n")
    with pytest.raises(UserError, match=r"Is --image-root right\?"):
        on_this_process(choices, ["--model", MODEL, "--data", str(path), "--output", str(folder / "out")])
    with pytest.raises(UserError, match=r"Is the folder of the choice set right\?"):  # as of a configuration
        read_choices(path)

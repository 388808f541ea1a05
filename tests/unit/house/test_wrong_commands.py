"""Thirty wrong commands and configurations: exit code 2, and a message that says what was expected and found, where, and what to do."""

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
MODEL, BLIP = "demo/models/siglip-base", "demo/models/blip-itm"
SCENES = "demo/data/scenes.parquet"
EVAL = ["--model", MODEL, "--data", SCENES, "--split", "test", "--column", "group=scene", "--output", "{out}"]
RERANK = ["--model", MODEL, "--images", SCENES, "--split", "test", "--output", "{out}.csv"]

COMMANDS: dict[str, tuple[str, list[str], list[str]]] = {
    "no command line": ("eval", [], ["the following arguments are required: --model, --data, --output"]),
    "an unknown option": ("eval", [*EVAL, "--topk", "5"], ["unrecognized arguments: --topk 5"]),
    "keys given as options": (
        "train.study",
        [SCENES, "--image-root", "photos", "--batch-size", "8"],
        ["unrecognized arguments: --image-root", "did you mean data.image_root=... and train.batch_size=...?"],
    ),
    "a number that is none": ("eval", [*EVAL, "--num-workers", "two"], ["--num-workers: expected a whole number, 0 or more; found 'two'"]),
    "a model's path with a typing error": (
        "eval",
        [*EVAL, "--model", "runs/demo/exprot"],
        ["--model: 'runs/demo/exprot': no such folder is here", "Expected a folder with config.json", "OWNER/NAME@REVISION"],
    ),
    "a model of the hub, offline": (
        "eval",
        [*EVAL, "--also", "other=nobody/siglip@v2"],
        ["--also: nobody/siglip@v2:", "not in the hub's cache", "HF_HUB_OFFLINE is set", "hf download nobody/siglip --revision v2"],
    ),
    "a reranker as the model": (
        "eval",
        [*EVAL, "--model", BLIP],
        ["--model: ", "expected a SigLIP checkpoint", "found 'blip'", "--rerank"],
    ),
    "a model as the reranker": ("eval", [*EVAL, "--rerank", MODEL], ["--rerank: ", "it is a bi-encoder", "hand it to --model"]),
    "a text reranker": (
        "rerank",
        [*RERANK, "--rerank", "cross-encoder/ms-marco-MiniLM-L-6-v2"],
        ["--rerank: ", "text-text reranker", "never sees a picture", "Salesforce/blip-itm-base-coco"],
    ),
    "no data of that name": ("eval", [*EVAL, "--data", "pairs.jsonl"], ["pairs.jsonl: no such file or folder (--data)", "relative to"]),
    "data of another kind": ("eval", [*EVAL, "--data", "README.md"], ["README.md: a manifest is .jsonl", "found a file named *.md"]),
    "a column that is not there": (
        "eval",
        [*EVAL, "--column", "caption=title"],
        ["--column maps caption to 'title', which is not there", "columns found: ["],
    ),
    "a column of ours that is none": (
        "eval",
        [*EVAL, "--column", "picture=image"],
        ["--column: ['picture'] are not columns of ours", "'image'"],
    ),
    "a split that is not there": (
        "eval",
        [*EVAL, "--split", "dev"],
        ["no row has split 'dev'; splits found: 'test', 'train', 'val'", "with --split", "leave it out"],
    ),
    "more candidates than there are": (
        "eval",
        [*EVAL, "--rerank", BLIP, "--top-k", "100000"],
        ["--top-k: expected no more candidates than there are; found 100000", "Give 300 or less"],
    ),
    "an option about a reranker without one": ("eval", [*EVAL, "--seconds", "3"], ["--seconds needs --rerank"]),
    "a choice on what is measured": (
        "eval",
        [*EVAL, "--choose-on", "test"],
        ["--choose-on test is the split that is measured", "give another"],
    ),
    "a stage that there is not": (
        "eval",
        [*EVAL, "--compare", "tuned:base"],
        ["--compare: no stage is called ['base', 'tuned']; there will be ['model']"],
    ),
    "a table of another kind": (
        "rerank",
        [*RERANK[:-1], "out.xlsx"],
        ["--output out.xlsx: expected a name that ends in one of .parquet, .csv"],
    ),
    "a report of nothing": ("eval.compare", ["runs-nowhere", "{out}"], ["runs-nowhere: no such folder; expected a report's folder"]),
    "a run that is none": (
        "train.export",
        ["demo", "--output", "{out}"],
        ["demo/config.yaml: cannot be read", "give the path of a YAML file"],
    ),
    "a soup of one": ("train.soup", [MODEL, "--output", "{out}"], ["a soup takes two checkpoints or more; found 1"]),
    "a share above one": ("train.wise", ["demo", "--alphas", "0,2", "--output", "{out}"], ["an alpha is a number from 0 to 1; found '2'"]),
}
"""What is wrong -> (module, arguments, what is said)."""
GOOD: dict[str, Any] = {
    "name": "a",
    "model": {"base": MODEL},
    "data": {"source": SCENES, "columns": {"group": "scene"}},
    "train": {"max_steps": 9, "batch_size": 8, "learning_rate": 1e-5, "eval_every_steps": 3, "checkpoint_every_steps": 3},
}
CONFIGS: dict[str, tuple[list[str], list[str]]] = {
    "an unknown key": (
        ["train.learning_rat=1e-5"],
        ["train.learning_rat: unknown key; did you mean learning_rate?", "the command line gives"],
    ),
    "a missing key": (["train.learning_rate=null"], ["train.learning_rate:", "found None"]),
    "a value of another type": (["train.batch_size=many"], ["train.batch_size:", "valid integer", "found 'many'"]),
    "a value out of range": (["train.learning_rate=-1"], ["train.learning_rate:", "greater than 0", "found -1"]),
    "an override without a value": (["train.max_steps"], ["'train.max_steps': an override has the form key.path=value"]),
    "values that contradict one another": (["train.warmup_steps=20"], ["warmup_steps 20 leaves nothing of max_steps 9"]),
    "two faults at once": (["model.bas=a", "seed=-1"], ["2 fault(s)", "model.bas: unknown key; did you mean base?", "seed:", "found -1"]),
    "a base with a typing error": (["model.base=runs/old/export"], ["model.base: 'runs/old/export': no such folder is here"]),
    "a batch larger than the data": (["train.batch_size=100000"], ["train.batch_size is 100000, but split 'train' has only", "images"]),
    "a reranker that is none": ([f"rerank.model={MODEL}"], ["rerank.model: ", "it is a bi-encoder"]),
    "more candidates than there are": (
        [f"rerank.model={BLIP}", "rerank.top_k=100000"],
        ["rerank.top_k: expected no more", "Give 300 or less"],
    ),
    "data of no such name": (["data.source=pairs.csv"], ["pairs.csv: no such file or folder (data.source)"]),
    "a checkpoint of no such name": (
        ["evaluation.models.old=runs/old/export"],
        ["evaluation.models.old: 'runs/old/export': no such folder"],
    ),
}
"""What is wrong -> (overrides, what is said); checked as `./launch.sh check` does."""


def code_of(run: Callable[[], Any]) -> object:
    try:
        return run()
    except SystemExit as ended:
        return ended.code


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s+", " ", capsys.readouterr().err)


def test_there_are_thirty() -> None:
    assert len(COMMANDS) + len(CONFIGS) >= 30


@pytest.mark.parametrize("what", COMMANDS)
def test_a_wrong_command(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module, words, expected = COMMANDS[what]
    monkeypatch.chdir(ROOT)
    words = [word.replace("{out}", str(tmp_path / "out")) for word in words]
    is_package = module in ("eval", "eval.compare", "rerank", "train.export", "train.soup", "train.study", "train.wise")
    command = import_module(f"{module}.__main__" if is_package else module)
    monkeypatch.setattr("sys.argv", [module, *words])
    assert code_of(command.main if module == "eval" else lambda: command.main(words)) == 2
    message = said(capsys)
    assert [part for part in expected if part not in message] == [], message
    assert "Traceback" not in message


@pytest.mark.parametrize("what", CONFIGS)
def test_a_wrong_configuration(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from train import __main__ as command

    overrides, expected = CONFIGS[what]
    monkeypatch.chdir(ROOT)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(GOOD | {"runs_folder": str(tmp_path / "runs")}))
    monkeypatch.setattr("train.data.check_images.check_images", lambda *_: 0)  # the demo's pictures are whole
    assert command.run([str(tmp_path / "job.yaml"), *overrides, "--check-images"]) == 2
    message = said(capsys)
    assert message.startswith("error: ") and [part for part in expected if part not in message] == [], message
    assert not (tmp_path / "runs").exists()


def test_what_is_right_is_checked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from train import __main__ as command

    monkeypatch.chdir(ROOT)
    (tmp_path / "job.yaml").write_text(json.dumps(GOOD))
    monkeypatch.setattr("train.data.check_images.check_images", lambda *_: 0)
    assert command.run([str(tmp_path / "job.yaml"), f"rerank.model={BLIP}", "rerank.top_k=4", "--check-images"]) == 0
    printed = capsys.readouterr().out
    assert f"model     {MODEL}: all weights are there\n" in printed
    assert f"reranker  {BLIP}: all weights are there, and it scores pairs (blip)\n" in printed

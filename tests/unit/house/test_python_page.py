"""docs/python.md: five examples of at most 15 lines, which run as they stand from the repository's folder."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL))
SHOWN = {
    "Evaluate my embeddings": r"^0\.\d+ \[0\.\d+, 0\.\d+\]\n$",
    "Mine with my checkpoint and pairs": r"^mined [1-9]\d* negatives for 200 images, \d+ of them fall short\n\[\{'image_id': 'val-",
    "Rerank my candidate lists": r"^(.+ \('runs/val-000\d\.png', -?\d+\.\d+\)\n){2}$",
    "Compute the sigmoid loss in my own loop": "^$",
    "Load a report": r"(?s)tuned against base 0\.\d+ .* better\n.*\d+ queries of tuned whose answer is not among the first ten\n$",
}


def test_there_are_five_examples_of_at_most_15_lines() -> None:
    assert [*EXAMPLES] == [*SHOWN] and PAGE.count("```python") == 5
    assert {name: source.count("\n") for name, source in EXAMPLES.items() if len([line for line in source.split("\n") if line]) > 15} == {}


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_as_it_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("demo", "results"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[name], name, "exec"), {"__name__": "example"})
    shown = capsys.readouterr().out
    assert re.search(SHOWN[name], shown), shown
    if name.startswith("Mine"):
        assert sorted(path.suffix for path in (tmp_path / "runs" / "mined").iterdir()) == [".html", ".json", ".json", ".parquet"]


STABLE = {
    "eval.metrics.measurement.measure_embeddings": "images_ID, captions_CD, image_ids, caption_image_ids",
    "eval.metrics.metrics.retrieval_metrics": "scores_QN, relevant_QN",
    "eval.report.report.read_report": "folder",
    "eval.report.calibration.Calibration.read": "path",
    "eval.report.calibration.Calibration.stage": "self, weights_sha256, reranker",
    "eval.report.calibration.StageCalibration.probability": "self, direction, scores",
    "eval.report.calibration.StageCalibration.threshold": "self, direction, precision",
    "rerank.scorers.load.load_scorer": "model, *, device, settings",
    "rerank.scoring.lists.rerank_lists": "scorer, lists, *, direction, cache",
    "train.mining.pairs.mine_pairs": "model, data, output, *, split, image_root, columns, rules, execution",
    "train.loss.reference.pairwise_sigmoid_loss": "logits_BN, labels_BN",
    "train.loss.sigmoid.batch_loss": "images_BD, texts_BD, scale, bias, captions",
}
"""What docs/guarantees.md promises: the first arguments of each, in their order; more may follow, with a default."""


def test_the_stable_functions_take_what_they_took() -> None:
    promised = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    for name, arguments in STABLE.items():
        parts = name.split(".")
        length = next(number for number, part in enumerate(parts) if part[0].isupper()) if any(p[0].isupper() for p in parts) else -1
        module, words = ".".join(parts[:length]), parts[length:]
        found: Any = importlib.import_module(module)
        for word in words:
            found = getattr(found, word)
        signature = inspect.signature(found)
        plain = [name for name, one in signature.parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
        keywords = [name for name, one in signature.parameters.items() if one.kind is one.KEYWORD_ONLY]
        before, _, after = arguments.partition(", *, ")
        assert ", ".join(plain).startswith(before) and set(after.split(", ") if after else ()) <= set(keywords), name
        assert inspect.getdoc(found) and signature.return_annotation is not inspect.Signature.empty, name
        assert name.rpartition(".")[0] in promised or name in promised or "StageCalibration" in name, name

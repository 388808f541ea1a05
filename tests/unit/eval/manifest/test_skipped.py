"""Rows that were left out as asked: in a list next to the report, in the report, and on the terminal."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import RowRules, read_manifest
from eval.manifest.skipped import Skipped, skipped_in_words, write_skipped
from eval.metrics.evaluate import evaluate
from eval.report.report import print_report, write_report
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from tests.unit.eval.one_direction import search


def test_the_list_has_a_line_a_row_and_goes_with_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    rows = [Skipped("m.csv:2", "a.jpg", "missing file", "x"), Skipped("m.csv:9", "caf\u00e9.jpg", "missing file")]
    write_skipped(path, rows)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"where": "m.csv:2", "image": "a.jpg", "reason": "missing file", "split": "x"},
        {"where": "m.csv:9", "image": "caf\u00e9.jpg", "reason": "missing file", "split": None},
    ]
    write_skipped(path, [])
    assert not path.exists()
    assert skipped_in_words({"num_rows": 3, "reasons": {"missing file": 2, "broken": 1}}) == "3 rows skipped: 2 x missing file, 1 x broken"


def test_a_report_tells_of_them(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "caption": f"number {number}", "split": "x" if number < 10 else "y"} for number in range(12)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_split(read_manifest(tmp_path / "m.jsonl", rules=RowRules(skip_missing=True)), "x")
    assert dataset.record()["skipped"] == {"num_rows": 2, "reasons": {"missing file": 2}}, "those of the split"
    vectors = np.eye(8, dtype=np.float32)
    found = {direction: search(direction, vectors, vectors, dataset.positives(direction), 8) for direction in DIRECTIONS}
    figures = evaluate(dataset, [Stage("model", found)])
    folder = write_report(tmp_path / "report", figures)
    told = "2 rows skipped: 2 x missing file. They are listed in skipped.jsonl."
    assert told in (folder / "report.html").read_text()
    console = Console(file=io.StringIO(), width=200)
    print_report(json.loads((folder / "report.json").read_text()), console=console)
    assert told in console.file.getvalue()  # type: ignore[attr-defined]

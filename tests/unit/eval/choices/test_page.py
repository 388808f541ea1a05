"""docs/choices.md: its figures are those of the committed rows, and its example rows are a choice set."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from eval.choices.choice_set import read_choices
from eval.choices.figures import choice_figures

ROOT = Path(__file__).parents[4]
RESULTS = ROOT / "results" / "demo-choices"
PAGE = (ROOT / "docs" / "choices.md").read_text(encoding="utf-8")


def test_the_figures_are_those_of_the_committed_rows() -> None:
    record = json.loads((RESULTS / "choices.json").read_text(encoding="utf-8"))
    pairs = list(dict.fromkeys((row["stage"], row["against"]) for row in record["comparisons"]))
    again = choice_figures(pq.read_table(RESULTS / "choices.parquet"), pairs)
    assert json.loads(json.dumps(again)) == {key: record[key] for key in ("stages", "comparisons")}
    names = ["model", "blip", "model+blip"]
    stages = [again["stages"][name] for name in names]
    groups = [("all", [stage["overall"] for stage in stages])]
    groups += [(name, [stage["categories"][name] for stage in stages]) for name in stages[0]["categories"]]
    lines = [f"| accuracy, % | chance | {' | '.join(names)} |", "|---|---|---|---|---|"]
    for name, figures in groups:
        values = [figures[0]["accuracy"]["chance"], *(figure["accuracy"]["value"] for figure in figures)]
        lines.append(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
    assert "\n".join(lines) in PAGE
    found = {(row["stage"], row["against"]): row for row in again["comparisons"] if row["metric"] == "accuracy"}
    for pair, words in (
        (("blip", "model"), "blip against model: {} points, 95% interval {} to {}, {}"),
        (("model+blip", "blip"), "model+blip against blip: {}, {} to {}, {}"),
    ):
        row = found[pair]
        numbers = [f"{100 * value:+.1f}" for value in (row["delta"], *row["ci95"])]
        assert words.format(*numbers, row["verdict"]).replace("+-", "-") in PAGE


def test_the_example_rows_are_read(tmp_path: Path) -> None:
    (rows,) = re.findall(r"^```json\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "choices.jsonl").write_text(rows, encoding="utf-8")
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [example.kind for example in read_choices(tmp_path / "choices.jsonl").examples] == ["choice", "pair"]

"""A choice set measured: choices.json, choices.parquet, choices.html, tables on the terminal."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.choices.choice_set import ChoiceSet
from eval.choices.figures import choice_figures
from eval.choices.outcomes import METRICS, outcome_table
from eval.page import render
from eval.replacing import replace_together

_METRICS = [metric for names in METRICS.values() for metric in names]


@dataclass(frozen=True)
class ChoiceReport:
    """What choices.json holds, and the table it was computed from."""

    record: dict[str, Any]
    table: pa.Table


def choice_report(
    choices: ChoiceSet, stages: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], rules: Mapping[str, str]
) -> ChoiceReport:
    """Measure stages on a choice set and compare pairs of them.

    Args:
        stages: name -> scores of `choices.pairs()`.
        pairs: (stage, against) names.
        rules: name -> what its scores are, in words.
    """
    table = outcome_table(choices, stages)
    data = {
        "source": choices.source,
        "num_examples": len(choices.examples),
        "num_images": choices.num_images,
        "num_captions": len(choices.captions),
        "sha256": choices.sha256(),
    }
    return ChoiceReport({"data": data, "scores": dict(rules)} | choice_figures(table, pairs), table)


def write_choices(folder: str | os.PathLike[str], report: ChoiceReport) -> Path:
    """Write choices.parquet, choices.html and choices.json, each committed by a rename. Returns the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    record = json.dumps(report.record, indent=1, allow_nan=False) + "\n"
    page = render("choices.html.j2", choices=[report.record])
    replace_together(
        {
            target / "choices.parquet": lambda path: pq.write_table(report.table, path),
            target / "choices.html": lambda path: path.write_text(page, encoding="utf-8"),
            target / "choices.json": lambda path: path.write_text(record, encoding="utf-8"),
        }
    )
    return target


def print_choices(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the figures, those of each category, and the comparisons of a record as tables."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a log file has no edge to wrap at
    console.print(_overall_table(record))
    if next(iter(record["stages"].values()))["categories"]:
        console.print(_category_table(record))
    if record["comparisons"]:
        console.print(_comparison_table(record["comparisons"]))


def _overall_table(record: Mapping[str, Any]) -> Table:
    data = record["data"]
    table = _table(
        f"{data['source']}: {data['num_examples']:,} examples, {data['num_images']:,} images",
        ["metric", "stage"],
        ["percent", "95% interval", "chance", "examples"],
    )
    for metric in _METRICS:
        for stage, figures in record["stages"].items():
            if figure := figures["overall"].get(metric):
                low, high = (f"{100 * bound:.1f}" for bound in figure["ci95"])
                cells = [
                    metric.replace("_", " "),
                    stage,
                    f"{100 * figure['value']:.1f}",
                    f"[{low}, {high}]",
                    f"{100 * figure['chance']:.1f}",
                ]
                table.add_row(*map(escape, cells), str(figure["num_examples"]))
    return table


def _category_table(record: Mapping[str, Any]) -> Table:
    stages = [figures["categories"] for figures in record["stages"].values()]
    table = _table("by category, in percent", ["category", "metric"], ["examples", "chance", *record["stages"]])
    for category, figures in stages[0].items():
        for metric, figure in figures.items():
            values = [f"{100 * stage[category][metric]['value']:.1f}" for stage in stages]
            told = [category, metric.replace("_", " "), str(figure["num_examples"]), f"{100 * figure['chance']:.1f}", *values]
            table.add_row(*map(escape, told))
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for column in words:
        table.add_column(escape(column), no_wrap=True)
    for column in numbers:
        table.add_column(escape(column), justify="right", no_wrap=True)
    return table


def _comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    title = "differences in points, paired 95% intervals (images drawn), p corrected over all rows"
    table = _table(title, ["stage", "against", "metric"], ["difference", "95% interval", "p", "wins", "losses", "verdict"])
    for row in comparisons:
        low, high = row["ci95"]
        cells = [escape(row["stage"]), escape(row["against"]), row["metric"].replace("_", " "), f"{100 * row['delta']:+.2f}"]
        cells += [escape(f"[{100 * low:+.2f}, {100 * high:+.2f}]"), f"{row['p_value']:.4f}", str(row["wins"]), str(row["losses"])]
        table.add_row(*cells, row["verdict"], style={"better": "green", "worse": "red"}.get(row["verdict"]))
    return table

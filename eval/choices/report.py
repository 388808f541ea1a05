"""A choice set measured: choices.json, choices.parquet, choices.html, tables on the terminal."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from eval.atomic import claimed, replace_files
from eval.choices.choice_set import ChoiceSet
from eval.choices.figures import choice_figures
from eval.choices.outcomes import METRICS, outcome_table
from eval.choices.texts import choice_text_lines
from eval.report.console_table import Column, print_table
from eval.report.files import choices_files
from eval.report.gallery import Thumbnails, shortened
from eval.report.render import TEMPLATES, render
from eval.report.section import SectionFormat

_METRICS = [metric for names in METRICS.values() for metric in names]
_OUTCOMES = ("fixed", "broken", "wrong in both", "wrong", "right")
_MOST_EXAMPLES, _EXAMPLE_PIXELS = 4, 128
_WHOLE = "all are in choices.json"
CHOICES = SectionFormat(
    key="choices", title="Choice sets", template=TEMPLATES / "choice_sets.html.j2", names={"text_lines": choice_text_lines}
)
"""The records of choice sets as a section of a retrieval report."""


@dataclass(frozen=True)
class ChoiceReport:
    """What choices.json holds, the table it was computed from, and examples for the page."""

    record: dict[str, Any]
    table: pa.Table
    examples: Sequence["ShownChoice"] = ()


@dataclass(frozen=True)
class ShownChoice:
    """An example as the page shows it.

    Attributes:
        outcome: "fixed", "broken" or "wrong in both" from the first stage to the second; of a single stage "wrong" or "right".
        pictures: data: URIs; "" where one does not decode.
        captions: with whether each is true of the first picture.
        found: whether each stage is right.
    """

    id: str
    category: str | None
    outcome: str
    pictures: list[str]
    captions: list[tuple[str, bool]]
    found: dict[str, bool]


def choice_report(
    choices: ChoiceSet,
    stages: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    rules: Mapping[str, str],
    texts: Sequence[Mapping[str, Any]] = (),
) -> ChoiceReport:
    """Measure stages (name -> scores of `choices.pairs()`) on a choice set and compare pairs of them.

    Args:
        rules: what the scores of each stage are.
        texts: what the tokenizer of each checkpoint makes of the captions (eval/choices/texts.py).
    """
    table = outcome_table(choices, stages)
    data = {
        "source": choices.source,
        "num_examples": len(choices.examples),
        "num_images": choices.num_images,
        "num_captions": len(choices.captions),
        "sha256": choices.sha256(),
    }
    record = {"data": data, "texts": list(texts), "scores": dict(rules)} | choice_figures(table, pairs)
    return ChoiceReport(record, table, shown_choices(choices, table))


def shown_choices(choices: ChoiceSet, table: pa.Table) -> list[ShownChoice]:
    """Examples of what the second stage fixed, broke and gets wrong like the first, up to four of each, in the order of the set."""
    columns = ["stage", "id", *METRICS["choice"][:1], *METRICS["pair"][-1:]]
    found: dict[str, dict[str, bool]] = {}
    for stage, name, single, pair in zip(*(table[column].to_pylist() for column in columns), strict=True):
        found.setdefault(name, {})[stage] = bool(pair if single is None else single)
    thumbnails, shown = Thumbnails(choices), dict[str, list[ShownChoice]]()
    for example in choices.examples:
        outcome = _outcome(list(found[example.id].values()))
        if outcome is None or len(shown.setdefault(outcome, [])) == _MOST_EXAMPLES:
            continue
        texts = [shortened(choices.captions[caption]) for caption in example.captions]
        pictures = [thumbnails.of(image, _EXAMPLE_PIXELS) for image in example.images]
        captions = [(text, not place) for place, text in enumerate(texts)]
        shown[outcome].append(ShownChoice(example.id, example.category, outcome, pictures, captions, found[example.id]))
    return [one for outcome in _OUTCOMES for one in shown.get(outcome, [])]


def _outcome(right: Sequence[bool]) -> str | None:
    """In words, from whether each stage is right; None: right in both, which is not shown."""
    if len(right) == 1:
        return "right" if right[0] else "wrong"
    return {(False, True): "fixed", (True, False): "broken", (False, False): "wrong in both", (True, True): None}[right[0], right[1]]


def write_choices(folder: str | os.PathLike[str], report: ChoiceReport) -> Path:
    """Write choices.parquet, choices.html and choices.json, each committed by a rename. Returns the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    record = json.dumps(report.record, indent=1, allow_nan=False) + "\n"
    page = render("choices.html.j2", record=[report.record], shown=[report.examples], text_lines=choice_text_lines)
    table = partial(pq.write_table, report.table)
    json_path, parquet_path, html_path = choices_files(target)
    with claimed(json_path):
        replace_files({parquet_path: table, html_path: page, json_path: record})
    return target


def print_choices(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the figures, those of each category, and the comparisons of a record as tables."""
    console = console or Console()
    for line in choice_text_lines(record.get("texts", ())):  # a record of an earlier version has none
        console.print(f"texts    {line}", markup=False, soft_wrap=True)
    _print_overall(record, console)
    if next(iter(record["stages"].values()))["categories"]:
        _print_categories(record, console)
    if record["comparisons"]:
        _print_comparisons(record["comparisons"], console)


def _print_overall(record: Mapping[str, Any], console: Console) -> None:
    data = record["data"]
    columns = [
        *(Column(header, is_name=True) for header in ("metric", "stage")),
        Column("percent", is_right=True),
        Column("95% interval", is_right=True, left_out=3),
        Column("chance", is_right=True, left_out=2),
        Column("examples", is_right=True, left_out=1),
    ]
    rows = []
    for metric in _METRICS:
        for stage, figures in record["stages"].items():
            if figure := figures["overall"].get(metric):
                low, high = (f"{100 * bound:.1f}" for bound in figure["ci95"])
                cells = [metric.replace("_", " "), stage, f"{100 * figure['value']:.1f}", f"[{low}, {high}]"]
                rows.append([*cells, f"{100 * figure['chance']:.1f}", str(figure["num_examples"])])
    title = f"{data['source']}: {data['num_examples']:,} examples, {data['num_images']:,} images"
    print_table(console, title, columns, rows, whole=_WHOLE)


def _print_categories(record: Mapping[str, Any], console: Console) -> None:
    columns = [
        *(Column(header, is_name=True) for header in ("category", "metric")),
        Column("examples", is_right=True, left_out=1),
        Column("chance", is_right=True, left_out=2),
        *(Column(stage, is_right=True) for stage in record["stages"]),
    ]
    stages = [figures["categories"] for figures in record["stages"].values()]
    rows = []
    for category, figures in stages[0].items():
        for metric, figure in figures.items():
            values = [f"{100 * stage[category][metric]['value']:.1f}" for stage in stages]
            rows.append([category, metric.replace("_", " "), str(figure["num_examples"]), f"{100 * figure['chance']:.1f}", *values])
    print_table(console, "by category, in percent", columns, rows, whole=_WHOLE)


def _print_comparisons(comparisons: Sequence[Mapping[str, Any]], console: Console) -> None:
    columns = [
        *(Column(header, is_name=True) for header in ("stage", "against", "metric")),
        Column("difference", is_right=True),
        Column("95% interval", is_right=True, left_out=4),
        Column("p", is_right=True, left_out=3),
        Column("wins", is_right=True, left_out=2),
        Column("losses", is_right=True, left_out=1),
        Column("verdict", is_right=True),
    ]
    rows = []
    for row in comparisons:
        low, high = row["ci95"]
        cells = [row["stage"], row["against"], row["metric"].replace("_", " "), f"{100 * row['delta']:+.2f}"]
        cells += [f"[{100 * low:+.2f}, {100 * high:+.2f}]", f"{row['p_value']:.4f}", str(row["wins"]), str(row["losses"])]
        rows.append([*cells, row["verdict"]])
    styles = [{"better": "green", "worse": "red"}.get(row["verdict"]) for row in comparisons]
    title = "differences in points, paired 95% intervals (bootstrap over images), p corrected within each pair"
    print_table(console, title, columns, rows, whole=_WHOLE, styles=styles)

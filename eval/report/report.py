"""Write a report where people and programs look for it: report.json, queries.parquet, report.html, and a table on the terminal."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape

from eval.atomic import claimed, hash_file, replace_files
from eval.dataset.truth import truth_in_words
from eval.files import read_text
from eval.metrics.evaluate import Figures
from eval.metrics.stage_metrics import METRICS
from eval.report.console_table import Column, print_table
from eval.report.files import report_files
from eval.report.gallery import Gallery
from eval.report.page.about import About
from eval.report.page.page import few_images_lines, report_page, skipped_notes
from eval.report.render import DIRECTION_WORDS, show, show_interval
from eval.report.section import Section, SectionFormat, section_lines

_LEFT_OUT = {"R-Precision": 1, "mAP@R": 2, "mean_rank": 3, "MRR": 4, "median_rank": 5}
"""In which order the terminal's table does without a metric where it is narrow."""
_NO_QUERIES, _UNTOLD = Gallery(), About()
_WHOLE = "all are in report.json"


def write_report(
    folder: str | os.PathLike[str],
    figures: Figures,
    sections: Sequence[Section] = (),
    *,
    gallery: Gallery = _NO_QUERIES,
    about: About = _UNTOLD,
) -> Path:
    """Write the three files of a report, each committed by a rename. Returns the folder.

    Args:
        gallery: queries that the page shows.
        about: what the page says of where the figures come from.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    record = report_record(figures, sections)
    page = report_page(target, figures, sections, gallery, about)
    json_path, parquet_path, html_path = report_files(target)

    def write_queries(path: Path) -> None:
        pq.write_table(figures.queries, path)
        record["queries_sha256"] = hash_file(path)

    def write_record(path: Path) -> None:
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    with claimed(json_path):
        replace_files({parquet_path: write_queries, html_path: page, json_path: write_record})
    return target


def report_record(figures: Figures, sections: Sequence[Section] = ()) -> dict[str, Any]:
    """What report.json holds."""
    record = {"data": figures.data, "stages": figures.stages, "comparisons": figures.comparisons}
    record |= {"outcomes": figures.outcomes, "slices": figures.slices, "failures": figures.failures}
    return record | {section.format.key: section.record for section in sections}


def read_report(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of a written report, report.json of its folder: "data", "stages", "comparisons" and more (docs/evaluation.md).

    Raises:
        OSError, ValueError: it is not there or not whole.

    >>> report = read_report(Path(__file__).parents[2] / "results" / "demo")
    >>> sorted(report["stages"])
    ['base', 'base+blip', 'tuned', 'tuned+blip']
    >>> first = report["comparisons"][0]
    >>> first["stage"], first["against"], first["metric"], first["verdict"]
    ('tuned', 'base', 'R@1', 'better')
    """
    record: dict[str, Any] = json.loads(read_text(Path(folder) / "report.json"))
    return record


def print_report(record: dict[str, Any], formats: Sequence[SectionFormat] = (), *, console: Console | None = None) -> None:
    """Print the stages, and the comparisons that matter most, of a report's record as tables; then the sentences of its sections."""
    console = console or Console()
    data = record["data"]
    title = f"{data['source']} [{data['split'] or 'all rows'}]: {data['num_images']:,} images, {data['num_captions']:,} captions"
    columns = [Column("stage", is_name=True), Column("direction", is_name=True)]
    columns += [Column(metric.replace("_", " "), is_right=True, left_out=_LEFT_OUT.get(metric)) for metric in METRICS]
    rows = [
        [stage, DIRECTION_WORDS[direction], *(show(metric, figures[direction][metric]) for metric in METRICS)]
        for stage, figures in record["stages"].items()
        for direction in ("image_to_text", "text_to_image")
    ]
    print_table(console, title, columns, rows, whole=_WHOLE)
    if data.get("truth", {"protocol": "all"}) != {"protocol": "all"}:
        console.print(truth_in_words(data["truth"]), markup=False)
    for note in skipped_notes(data):
        console.print(note, markup=False)
    if record["comparisons"]:
        print_comparisons(record["comparisons"], console, whole=_WHOLE)
        for line in few_images_lines(data["num_images"], record["comparisons"]):
            console.print(line, markup=False, soft_wrap=True)
    for row in record.get("outcomes", []):  # a report of an earlier version has none
        if row["top_k"] is not None:
            console.print(outcome_line(row, record["stages"][row["stage"]]["ceiling"][row["direction"]]), soft_wrap=True)
    for line in section_lines(record, formats):
        console.print(line, markup=False, soft_wrap=True)


def outcome_line(row: dict[str, Any], ceiling: float) -> str:
    """Bins and ceiling of one reranked stage in one direction."""
    counts = ", ".join(f"{count:,} {name}" for name, count in row["counts"].items())
    where = f"{escape(row['stage'])}, {DIRECTION_WORDS[row['direction']]}"
    return f"{where}: {counts}; ceiling (R@{row['top_k']} of {escape(row['against'])}) {100 * ceiling:.2f}"


def print_comparisons(comparisons: list[dict[str, Any]], console: Console, *, whole: str) -> None:
    """Print R@1 in every direction and the other recalls of both together; report.html and report.json have every row."""
    shown = [row for row in comparisons if row["metric"] == "R@1" or row["direction"] == "both"]
    columns = [
        *(Column(header, is_name=True) for header in ("stage", "against", "direction")),
        Column("metric"),
        Column("difference", is_right=True),
        Column("95% interval", left_out=4),
        Column("p", is_right=True, left_out=3),
        Column("wins", is_right=True, left_out=2),
        Column("losses", is_right=True, left_out=1),
        Column("verdict"),
    ]
    rows = [
        [
            *(row["stage"], row["against"], DIRECTION_WORDS[row["direction"]], row["metric"], f"{100 * row['delta']:+.2f}"),
            *(show_interval(row["ci95"]), f"{row['p_value']:.4f}", str(row["wins"]), str(row["losses"]), row["verdict"]),
        ]
        for row in shown
    ]
    title = "differences in points, with paired 95% intervals (bootstrap over images), p corrected within each pair of stages"
    styles = [{"better": "green", "worse": "red"}.get(row["verdict"]) for row in shown]
    print_table(console, title, columns, rows, whole=whole, styles=styles)

"""python -m eval.compare RUN_A RUN_B [RUN_C ...] [--stages STAGE_A:STAGE_OTHER] [--output FOLDER]

Compare finished reports query by query: is each of the others better than the first, by how much, and is the difference significant? A
run is a report's folder (report.json and queries.parquet), or the folder of a training run, whose only report is taken. All must have
asked the same queries. Exit codes: 0 done · 2 the reports cannot be compared · 4 could not write.
"""

import argparse
import json
import sys
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser
from eval.files import command_line
from eval.manifest.options import add_manifest_options, column_fault, columns_of

_FILES = ("compare.json", "compare.html")


def make_parser() -> CommandParser:
    """The options."""
    description = "Compare finished reports query by query: is each better than the first?"
    parser = CommandParser("eval.compare", description, "compare runs/demo runs/again --stages tuned:model --output runs/compared")
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="a report's folder, or a training run's; the others are compared with it")
    parser.add_argument("others", type=Path, nargs="+", metavar="RUN_B", help="one or more others, each asked whether it is better")
    parser.add_argument(
        "--stages",
        action="append",
        default=[],
        metavar="STAGE_A:STAGE_OTHER",
        help="compare these, once for each pair (default: every stage that both have)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder for compare.json and compare.html (default: nothing is written)"
    )
    parser.add_argument(
        "--data", metavar="MANIFEST", help="where compare.html takes pictures and captions from (default: the data that the reports name)"
    )
    add_manifest_options(parser)
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if fault := column_fault(asked):
        parser.error(fault)
    writes = [asked.output / name for name in _FILES] if asked.output is not None else []
    return run_command(lambda: run(asked), writes=writes, loads_models=False)


def run(asked: argparse.Namespace) -> None:
    """Compare, write and print.

    Raises:
        UserError: the reports cannot be compared, or --output cannot be written.
    """
    from rich.console import Console

    from eval.atomic import check_writable, replace_files
    from eval.compare.items import AskedData, read_items
    from eval.compare.page import page, sentences
    from eval.compare.reports import (
        check_same_ground_truth,
        compare_reports,
        find_report,
        letter,
        letters_of,
        precision_lines,
        read_data,
        same_weights_lines,
    )
    from eval.errors import writing
    from eval.progress import say
    from eval.report.answer import folded, print_answer
    from eval.report.report import few_images_lines, print_comparisons

    if asked.output is not None:
        with writing(asked.output):
            asked.output.mkdir(parents=True, exist_ok=True)
        check_writable(*(asked.output / name for name in _FILES))
    folders = [find_report(folder) for folder in (asked.run_a, *asked.others)]
    data = [read_data(folder) for folder in folders]
    for number, other in enumerate(data[1:], 1):
        check_same_ground_truth(data[0].get("truth"), other.get("truth"), letter(number))
    record = compare_reports(folders, asked.stages)
    if asked.output is not None:
        shown = page(record, *read_items(folders[0], data[0], AskedData(asked.data, asked.image_root, columns_of(asked))))
        with writing(asked.output):
            replace_files({asked.output / "compare.html": shown, asked.output / "compare.json": json.dumps(record, indent=1) + "\n"})
    if any(one["sha256"] != data[0]["sha256"] for one in data):
        print("note: the data differ in something (ids, groups, captions or images), though the queries are the same", file=sys.stderr)
    for name in letters_of(record):
        say(f"{name}  {record[name]}")
    whole = "--output DIR writes all" if asked.output is None else "all are in compare.json"
    print_comparisons(record["comparisons"], Console(), whole=whole)
    for line in few_images_lines(record["num_images"], record["comparisons"]):
        print(line)
    notes = [f"weights  {line}" for line in same_weights_lines(record)] + [f"warning  {line}" for line in precision_lines(record)]
    lines = [*sentences(record), *(part for line in notes for part in folded(line))]
    shown_at = "add --output FOLDER to see the queries that differ" if asked.output is None else f"{asked.output / 'compare.html'}"
    print_answer([*lines, f"{'next' if asked.output is None else 'page'}     {shown_at}"])


if __name__ == "__main__":
    sys.exit(main(command_line()))

"""python -m eval.compare RUN_A RUN_B [--stages STAGE_A:STAGE_B] [--output DIR]

Compare two finished reports query by query: is B better than A, by how much, and is the difference significant? A run is a report's
folder (report.json and queries.parquet), or the folder of a training run, whose only report is taken. Both must have asked the same
queries. Exit codes: 0 done · 2 the reports cannot be compared · 4 could not write.
"""

import argparse
import json
import sys
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser
from eval.files import command_line


def make_parser() -> CommandParser:
    """The options."""
    description = "Compare two finished reports query by query: is B better than A?"
    parser = CommandParser("eval.compare", description, "compare runs/demo runs/again --stages tuned:model --output runs/compared")
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="a report's folder, or a training run's")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="the other, asked whether it is better")
    parser.add_argument(
        "--stages",
        action="append",
        default=[],
        metavar="STAGE_A:STAGE_B",
        help="compare these, once for each pair (default: every stage that both have)",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for compare.json (default: nothing is written)")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    writes = [asked.output / "compare.json"] if asked.output is not None else []
    return run_command(lambda: run(asked), writes=writes, loads_models=False)


def run(asked: argparse.Namespace) -> None:
    """Compare, write and print.

    Raises:
        UserError: the reports cannot be compared, or compare.json cannot be written.
    """
    from rich.console import Console

    from eval.atomic import check_writable, replace_files
    from eval.errors import writing
    from eval.report.compared import check_same_ground_truth, compare_reports, find_report, read_data
    from eval.report.report import few_images_lines, print_comparisons

    if asked.output is not None:
        with writing(asked.output):
            asked.output.mkdir(parents=True, exist_ok=True)
        check_writable(asked.output / "compare.json")
    folders = find_report(asked.run_a), find_report(asked.run_b)
    data_a, data_b = (read_data(folder) for folder in folders)
    check_same_ground_truth(data_a.get("truth"), data_b.get("truth"))
    record = compare_reports(*folders, asked.stages)
    if asked.output is not None:
        with writing(asked.output):
            replace_files({asked.output / "compare.json": json.dumps(record, indent=1) + "\n"})
    if data_a["sha256"] != data_b["sha256"]:
        print("note: the data differ in something (ids, groups, captions or images), though the queries are the same", file=sys.stderr)
    print(f"A  {folders[0]}\nB  {folders[1]}")
    whole = "--output DIR writes all" if asked.output is None else "all are in compare.json"
    print_comparisons(record["comparisons"], Console(), whole=whole)
    for line in few_images_lines(record["num_images"], record["comparisons"]):
        print(line)


if __name__ == "__main__":
    sys.exit(main(command_line()))

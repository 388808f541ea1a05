"""python -m eval.convert_choices --layout sugarcrepe|winoground|aro --source PATH --images FOLDER --output FILE.jsonl

Turns a published compositional benchmark, as its authors lay it out, into a choice set. Nothing is downloaded and no picture is copied:
rows hold paths relative to the OUTPUT's folder, so OUTPUT lies in a folder that also holds the pictures. Exit codes: 0 done · 2 the source
is not of that layout, or pictures are missing · 4 could not write.
"""

import argparse
import sys
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser
from eval.files import command_line


def make_parser() -> CommandParser:
    """The options."""
    parser = CommandParser(
        "eval.convert_choices",
        "Turn a compositional benchmark, as its authors lay it out, into a choice set.",
        "python -m eval.convert_choices --layout sugarcrepe --source data/sugar-crepe --images data/val2017 --output data/sugarcrepe.jsonl",
    )
    parser.add_argument("--layout", required=True, choices=("sugarcrepe", "winoground", "aro"), help="whose files they are")
    parser.add_argument("--source", required=True, type=Path, help="the benchmark's file (SugarCrepe: or the folder of its files)")
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="folder of its pictures")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="choice set to write, .jsonl, in or above a folder of the pictures"
    )
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    return run_command(lambda: run(asked), writes=[asked.output], loads_models=False)


def run(asked: argparse.Namespace) -> None:
    """Convert, and print how many examples there are; raises as `eval.choices.layouts.convert`."""
    from eval.choices.layouts import convert

    num_rows = convert(asked.layout, asked.source, asked.images, asked.output)
    print(f"{asked.output}: {num_rows:,} examples")


if __name__ == "__main__":
    sys.exit(main(command_line()))

"""python -m train.init DATA [--output FILE.yaml]: look at a data set and write a first configuration for it. Nothing is trained."""

import argparse
import sys
from itertools import count
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser
from eval.files import command_line
from eval.manifest.names import OPTIONS, calling
from eval.manifest.options import MANIFEST, add_manifest_options, column_fault, columns_of

BASE = "google/siglip-base-patch16-224"
RUNS = Path(__file__).parents[2] / "runs"
"""Where `./launch.sh` puts runs."""


def make_parser() -> CommandParser:
    """The options."""
    parser = CommandParser(
        "train.init",
        "Look at a data set and write a first configuration for it. Nothing is trained.",
        "init captions.csv --image-root photos",
    )
    add = parser.add_argument
    add("data", help=f"labelled pairs: {MANIFEST}")
    add_manifest_options(parser, "the data")
    add("--base", metavar="MODEL", default=BASE, help=f"checkpoint to tune: a folder, or OWNER/NAME of the hub (default {BASE})")
    add("--output", type=Path, metavar="FILE.yaml", help="the file to write (default: the data's name, here)")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if fault := column_fault(asked):
        parser.error(fault)
    return run_command(lambda: run(asked), loads_models=False)


def run(asked: argparse.Namespace) -> None:
    """Look at the data, write the file and say what was found.

    Raises:
        UserError: the data cannot be read, or the file is there already.
        OSError: it cannot be written.
    """
    from eval.atomic import replace_files
    from eval.errors import UserError
    from train.config.load import run_name
    from train.init.survey import survey
    from train.init.write import configuration

    name = run_name(asked.data)
    output = asked.output or Path(f"{name}.yaml")
    if output.exists():
        raise UserError(f"{output} is there already; give another name with --output, or move it away")
    stem = name
    for number in count(2):  # a run that is there has this configuration's name, and another configuration
        if not (RUNS / name).exists():
            break
        name = f"{stem}-{number}"
    with calling(OPTIONS):
        found = survey(asked.data, image_root=asked.image_root, columns=dict(columns_of(asked)))
    replace_files({output: configuration(found, name, asked.image_root, asked.base)})
    for line in found.lines():
        print(line)
    print(f"written: {output}; next: ./launch.sh {output}")


if __name__ == "__main__":
    sys.exit(main(command_line()))

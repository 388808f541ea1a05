"""A cross-encoder that was published as a pickle, written as a folder of safetensors that `--rerank` reads.

python -m rerank.convert ALBEF.pth --output DIR [--tokenizer DIR_OR_HUB_ID] [--image-size 384]
python -m rerank.convert FOLDER_OR_HUB_ID --output DIR
"""

import argparse
import sys
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser, WholeNumber
from eval.files import command_line


def make_parser() -> CommandParser:
    """The options."""
    description = "Write a pickled cross-encoder as a folder of safetensors."
    parser = CommandParser("rerank.convert", description, "convert downloads/ALBEF.pth --image-size 384 --output models/albef")
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="ALBEF's .pth; or a folder, or OWNER/NAME[@REVISION] of the hub, with a pytorch_model.bin alone",
    )
    add("--output", required=True, type=Path, metavar="FOLDER", help="folder to write; new or empty")
    add("--tokenizer", metavar="MODEL", help="ALBEF only: folder or hub id of its tokenizer (default bert-base-uncased)")
    add(
        "--image-size",
        type=WholeNumber(1),
        metavar="PIXELS",
        help="ALBEF only: pixels of a side, 1 or more, a multiple of a patch's; positions are interpolated (default: the file's own)",
    )
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    return run_command(lambda: run(asked), writes=[asked.output])


def run(asked: argparse.Namespace) -> None:
    """Convert, and print what was done; raises as `rerank.convert.convert.convert`."""
    from rerank.convert.convert import convert

    for line in convert(asked.source, asked.output, tokenizer=asked.tokenizer, image_size=asked.image_size):
        print(line)


if __name__ == "__main__":
    sys.exit(main(command_line()))

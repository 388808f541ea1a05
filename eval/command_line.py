"""The parser of every command: help that ends with an example, and is printed before anything heavy is imported."""

import argparse
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """A parser that knows its example, and whose help ends quietly where its reader has left, as after `| head`.

    Attributes:
        example: a whole command line.
    """

    def __init__(self, module: str, description: str, example: str) -> None:
        """module: what `python -m` runs; example: what `./launch.sh` runs, without that word."""
        self.example = f"./launch.sh {example}"
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            epilog=f"example:\n  {self.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def print_help(self, file: Any = None) -> None:
        """As of argparse; written whole, so that Python finds nothing left to write when it ends."""
        try:
            super().print_help(file)
            (file or sys.stdout).flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class WholeNumber:
    """The type of an option that takes a whole number of at least so much."""

    least: int

    def __call__(self, text: str) -> int:
        """The number; raises argparse.ArgumentTypeError where it is none, or too small."""
        with suppress(ValueError):
            if (number := int(text)) >= self.least:
                return number
        raise argparse.ArgumentTypeError(f"expected a whole number, {self.least} or more; found {text!r}")


def add_num_workers(parser: Any) -> None:
    """Give a command the option --num-workers."""
    parser.add_argument(
        "--num-workers",
        type=WholeNumber(0),
        default=2,
        metavar="N",
        help="processes that decode pictures for each process of the command, 0 or more; 0: it decodes them itself (default 2)",
    )


def add_precision(parser: Any) -> None:
    """Give a command the option --precision."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="what SigLIP embeds in; bf16 and fp16 (GPU alone) are faster, move ranks a little, and are named in the report (default fp32)",
    )


def add_strip_punctuation(parser: Any) -> None:
    """Give a command the option --strip-punctuation."""
    parser.add_argument(
        "--strip-punctuation",
        action="store_true",
        help="strip it from captions for SigLIP 2 too (default: it is kept there; SigLIP's own tokenizer always strips it)",
    )

"""WiSE-FT: weights between base and tuned, measured on val and on the retention sets; the best are exported on request.

    python -m train.wise RUN_FOLDER --output DIR [--alphas 0,0.2,0.4,0.6,0.8,1] [--keep best|ALPHA]

Writes DIR/wise.json, DIR/wise.png, DIR/wise.svg, DIR/SET.parquet (a row a query of every alpha) and, with --keep, DIR/export. Source:
Wortsman et al. 2022, arXiv 2109.01903, equation 1, over every weight: both towers, scale and bias.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from eval.command import run_command
from eval.command_line import CommandParser
from eval.files import command_line


def make_parser() -> CommandParser:
    """The options."""
    description = "Weights between base and tuned: measure them, keep one."
    parser = CommandParser("train.wise", description, "wise runs/demo --alphas 0,0.5,1 --keep best --output runs/demo-wise")
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="folder of a run, e.g. runs/demo")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--alphas",
        type=lambda text: [_alpha(part) for part in text.split(",")],
        default="0,0.2,0.4,0.6,0.8,1",
        metavar="ALPHA[,ALPHA...]",
        help="shares of the way from the base, 0, to the best checkpoint, 1 (default 0,0.2,0.4,0.6,0.8,1)",
    )
    parser.add_argument(
        "--keep",
        type=lambda text: text if text == "best" else _alpha(text),
        metavar="best|ALPHA",
        help="export the model of the best alpha, or of one from 0 to 1, to OUTPUT/export (default: nothing is exported)",
    )
    return parser


def _alpha(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"an alpha is a number from 0 to 1; found {text!r}")
    return value


def _show(record: dict[str, Any], output: Path) -> None:
    for name, rows in record["sets"].items():
        for row in rows:
            low, high = (100 * bound for bound in row["delta_ci95"])
            dropped = "  forgotten" if row["dropped"] and name != "val" else ""
            figures = f"mean R@1 {100 * row['mean_R@1']:6.2f}  against base {100 * row['delta']:+6.2f} [{low:+.2f}, {high:+.2f}]"
            print(f"{name:20} alpha {row['alpha']:<4g} {figures}{dropped}")
    print(f"best     alpha {record['best']:g}: {record['why']}")
    if record["kept"] is not None:
        print(f"export   {output}/export (alpha {record['kept']:g})")
    print(f"curve    {output}/wise.png, {output}/wise.svg (with wise.json and the per-query rows)")


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    writes = [asked.output / "wise.json", *([asked.output / "export"] if asked.keep is not None else [])]
    return run_command(lambda: run(asked), writes=writes)


def run(asked: argparse.Namespace) -> None:
    """Measure, keep what is asked for, and print.

    Raises:
        UserError, OSError: as `train.wise.curve.run`.
    """
    from train.config.load import read_run
    from train.wise import curve

    _show(curve.run(read_run(asked.run_folder), asked.output, asked.alphas, asked.keep), asked.output)


if __name__ == "__main__":
    sys.exit(main(command_line()))

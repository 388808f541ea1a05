"""A soup: the mean of the weights of several checkpoints of one architecture, exported as one model with the cost of one.

    python -m train.soup CHECKPOINT CHECKPOINT... --output DIR [--greedy] [--data MANIFEST --split val]

A CHECKPOINT is a folder, a hub id, RUN_FOLDER (its best checkpoint) or RUN_FOLDER@STEP. Writes DIR/soup.json, DIR/export and, where it
measures, DIR/soup.parquet (a row a query of every ingredient and every trial). Source: Wortsman et al. 2022, arXiv 2203.05482.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from eval.command import run_command
from eval.command_line import CommandParser, add_num_workers
from eval.files import command_line
from eval.manifest.options import MANIFEST, add_manifest_options, column_fault, columns_of
from train.config.run import DataConfig


def make_parser() -> CommandParser:
    """The options."""
    description = "Average the weights of checkpoints of one architecture."
    parser = CommandParser("train.soup", description, "soup runs/a runs/b@200 --greedy --output runs/soup")
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder, OWNER/NAME[@REVISION], RUN_FOLDER (its best) or RUN_FOLDER@STEP")
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder to write: soup.json, soup.parquet and export/")
    add(
        "--greedy",
        action="store_true",
        help="keep only those that do not lower mean R@1 on the data, the best first (default: the mean of all)",
    )
    add(
        "--data",
        metavar="MANIFEST",
        help=f"{MANIFEST} to measure on (default: none; with --greedy val of the runs, if all have one)",
    )
    add("--split", help="rows to measure on; needed where the manifest has splits; not the one you report (default: all rows)")
    add_manifest_options(parser)
    add_num_workers(parser)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, refused where an option needs another or is not of its form."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if fault := column_fault(asked):
        parser.error(fault)
    if asked.data is None and (asked.split or asked.image_root or asked.column):
        parser.error("--split, --image-root and --column say how to read --data, which is not given")
    return asked


def _show(record: dict[str, Any], output: Path) -> None:
    soup = record["soup"]
    for row in record["ingredients"] if "data" in record else ():
        print(f"alone    mean R@1 {100 * row['mean_R@1']:6.2f}  {row['name']}")
    for trial in record.get("trials", ()):
        verdict = "kept" if trial["kept"] else "left out"
        print(f"trial    mean R@1 {100 * trial['before']:6.2f} -> {100 * trial['mean_R@1']:6.2f}  with {trial['ingredient']}: {verdict}")
    if "data" in record:
        low, high = (100 * bound for bound in soup["delta_ci95"])
        against = f"against {soup['against']} {100 * soup['delta']:+.2f} [{low:+.2f}, {high:+.2f}]"
        print(f"soup     mean R@1 {100 * soup['mean_R@1']:6.2f}  {against}")
    print(f"export   {output}/export: the {record['kind']} soup of {len(soup['members'])} of {len(record['ingredients'])} checkpoints")


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments)
    return run_command(lambda: run(asked), writes=[asked.output / "soup.json", asked.output / "export"])


def run(asked: argparse.Namespace) -> None:
    """Make the soup, and print what it is.

    Raises:
        UserError, OSError: as `train.soup.make.run`.
    """
    from eval.manifest.names import KEYS, OPTIONS, calling
    from train.soup import make

    data = None
    if asked.data is not None:
        columns = dict(columns_of(asked))
        data = DataConfig(
            source=asked.data, image_root=asked.image_root, columns=columns, train_split=None, val_split=asked.split, test_split=None
        )
    options = OPTIONS | {"without_splits": f"{OPTIONS['without_splits']}, or --data too: --greedy then takes val of the runs"}
    with calling(KEYS if data is None else options):
        record = make.run(asked.checkpoints, asked.output, is_greedy=asked.greedy, data=data, num_workers=asked.num_workers)
    _show(record, asked.output)


if __name__ == "__main__":
    sys.exit(main(command_line()))

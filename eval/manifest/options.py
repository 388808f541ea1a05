"""The options that name a manifest and how it is read, of every command that takes one."""

import argparse
from collections.abc import Mapping

from eval.manifest.columns import COLUMNS

MANIFEST = (
    ".jsonl, .json, .csv, .tsv, .txt, .parquet, .tar, a folder or glob of them, a saved `datasets` folder, an image folder, or a data set "
    "of the hub, OWNER/NAME[:CONFIG][@REVISION]; docs/data.md lists the formats"
)


def add_manifest_options(parser: argparse.ArgumentParser, of: str = "--data") -> None:
    """Give a command --image-root and --column; `of`: the option that names the manifest."""
    parser.add_argument("--image-root", metavar="FOLDER", help=f"folder that image paths are relative to (default: that of {of})")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help=f"a column's name in {of}, once for each; ours: {', '.join(COLUMNS)} (default: the same names)",
    )


def column_fault(asked: argparse.Namespace) -> str:
    """What is wrong with the values of --column; empty: nothing."""
    if bad := [value for value in asked.column if "=" not in value]:
        return f"--column takes OURS=THEIRS, found {bad}"
    if unknown := sorted({value.partition("=")[0] for value in asked.column} - set(COLUMNS)):
        return f"--column: {unknown} are not columns of ours, which are {list(COLUMNS)}"
    return ""


def columns_of(asked: argparse.Namespace) -> Mapping[str, str]:
    """Our column -> the manifest's name, as --column says."""
    return dict(pair.split("=", 1) for pair in asked.column)

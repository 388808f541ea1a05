"""Export: a checkpoint of a run as plain Hugging Face weights, float32, adapters merged, with processor and model card.

python -m train.export RUN_FOLDER --output DIR [--checkpoint best|last|STEP]
"""

import argparse
import sys
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser
from eval.files import command_line


def make_parser() -> CommandParser:
    """The options."""
    description = "Export a checkpoint of a run as plain Hugging Face weights."
    parser = CommandParser("train.export", description, "export runs/demo --checkpoint last --output runs/demo-last")
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="folder of a run, e.g. runs/demo")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write; new, empty or an earlier export")
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help="best, last, or a step's number (default best)")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    return run_command(lambda: run(asked), writes=[asked.output])


def run(asked: argparse.Namespace) -> None:
    """Export a checkpoint of a run of either kind, a tuned SigLIP or a tuned reranker, and print which step it was.

    Raises:
        UserError, OSError: as export_checkpoint.
    """
    from train.config.load import read_run, read_run_as, read_yaml
    from train.config.reranker import RerankerConfig, is_reranker
    from train.engine.folder import check_replaceable
    from train.reranker.finish import export_cross_encoder
    from train.siglip.export import export_checkpoint

    check_replaceable(asked.output)  # before the weights are read
    if is_reranker(read_yaml(asked.run_folder / "config.yaml")):
        step = export_cross_encoder(read_run_as(RerankerConfig, asked.run_folder), asked.checkpoint, asked.output)
    else:
        step = export_checkpoint(read_run(asked.run_folder), asked.checkpoint, asked.output)
    print(f"step {step} exported to {asked.output}")


if __name__ == "__main__":
    sys.exit(main(command_line()))

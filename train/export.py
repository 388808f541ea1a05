"""Export: a checkpoint of a run as plain Hugging Face weights, float32, adapters merged, with processor and model card.

python -m train.export RUN_FOLDER --output DIR [--checkpoint best|last|STEP]
"""

import argparse
import sys
from pathlib import Path

from eval.command import run_command
from train.config.load import read_run, read_run_as, read_yaml
from train.siglip.export import export_checkpoint


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.export", description="Export a checkpoint of a run as plain Hugging Face weights."
    )
    parser.add_argument("run_folder", type=Path, help="folder of a run, e.g. runs/demo")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--checkpoint", default="best", help="best (default), last, or a step number")
    asked = parser.parse_args(arguments)
    return run_command(lambda: run(asked), writes=[asked.output])


def run(asked: argparse.Namespace) -> None:
    """Export a checkpoint of a run of either kind, a tuned SigLIP or a tuned reranker, and print which step it was.

    Raises:
        UserError, OSError: as export_checkpoint.
    """
    from train.config.reranker import RerankerConfig, is_reranker
    from train.engine.folder import check_replaceable
    from train.reranker.finish import export_cross_encoder

    check_replaceable(asked.output)  # before the weights are read
    if is_reranker(read_yaml(asked.run_folder / "config.yaml")):
        step = export_cross_encoder(read_run_as(RerankerConfig, asked.run_folder), asked.checkpoint, asked.output)
    else:
        step = export_checkpoint(read_run(asked.run_folder), asked.checkpoint, asked.output)
    print(f"step {step} exported to {asked.output}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

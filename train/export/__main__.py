"""Export: a checkpoint of a run as plain Hugging Face weights, float32, adapters merged, with processor and model card.

python -m train.export RUN_FOLDER --output DIR [--checkpoint best|last|STEP] [--dtypes bfloat16 ...] [--onnx] [--openvino] [--open-clip]
"""

import argparse
import sys
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser
from eval.errors import UserError
from eval.files import command_line


def make_parser() -> CommandParser:
    """The options."""
    description = "Export a checkpoint of a run as plain Hugging Face weights."
    parser = CommandParser("train.export", description, "export runs/demo --checkpoint last --output runs/demo-last")
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="folder of a run, e.g. runs/demo")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write; new, empty or an earlier export")
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help="best, last, or a step's number (default best)")
    add = parser.add_argument
    dtypes = ("float32", "bfloat16", "float16")
    add(
        "--dtypes",
        nargs="+",
        choices=dtypes,
        help="precisions of the weights: float32, always written; bfloat16, float16: folders in it (default: as the run's configuration)",
    )
    add("--onnx", action="store_true", help="also ONNX, in float32, float16 and int8 (default: as the run's configuration)")
    add("--openvino", action="store_true", help="also OpenVINO (default: as the run's configuration)")
    add("--open-clip", action="store_true", help="also a checkpoint for open_clip (default: as the run's configuration)")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    return run_command(lambda: run(asked), writes=[asked.output])


def run(asked: argparse.Namespace) -> None:
    """Export a checkpoint of a run of either kind, a tuned SigLIP or a tuned reranker, and print which step it was.

    Raises:
        UserError, OSError: as export_checkpoint; or a package is not installed, or a reranker is asked for other forms.
    """
    from train.config.export import ExportConfig
    from train.config.load import read_run, read_run_as, read_yaml
    from train.config.reranker import RerankerConfig, is_reranker
    from train.engine.folder import check_replaceable
    from train.export.forms import require_forms
    from train.reranker.finish import export_cross_encoder
    from train.siglip.export import export_checkpoint

    check_replaceable(asked.output)  # before the weights are read
    given = {"dtypes": asked.dtypes, "onnx": asked.onnx, "openvino": asked.openvino, "open_clip": asked.open_clip}
    given = {key: value for key, value in given.items() if value}
    if is_reranker(read_yaml(asked.run_folder / "config.yaml")):
        if given:
            raise UserError(f"{asked.run_folder} tuned a reranker, which is exported in float32 alone; leave out {', '.join(given)}")
        step = export_cross_encoder(read_run_as(RerankerConfig, asked.run_folder), asked.checkpoint, asked.output)
    else:
        config = read_run(asked.run_folder)
        config = config.model_copy(update={"export": ExportConfig(**(config.export.model_dump() | given))})
        require_forms(config.export)
        step = export_checkpoint(config, asked.checkpoint, asked.output)
    print(f"step {step} exported to {asked.output}")


if __name__ == "__main__":
    sys.exit(main(command_line()))

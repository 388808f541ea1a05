"""Export: a checkpoint of a run as plain Hugging Face weights, float32, adapters merged, with processor and model card; and send an
export to the hub.

    python -m train.export RUN_FOLDER --output DIR [--checkpoint best|last|STEP] [--dtypes bfloat16 ...] [--onnx] [--openvino] [--open-clip]
    python -m train.export MODEL --output DIR [--dtypes bfloat16 ...] ...    other forms of a soup, a WiSE-FT export, any SigLIP
    python -m train.export RUN_FOLDER_OR_EXPORT --push ORG/NAME [--public] [--update] [--dry-run]
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.command import run_command
from eval.command_line import CommandParser
from eval.errors import UserError
from eval.files import command_line


def make_parser() -> CommandParser:
    """The options."""
    description = "Export a checkpoint of a run as plain Hugging Face weights."
    parser = CommandParser("train.export", description, "export runs/demo --checkpoint last --output runs/demo-last")
    add, dtypes = parser.add_argument, ("float32", "bfloat16", "float16")
    add(
        "run_folder",
        type=Path,
        metavar="RUN_FOLDER_OR_MODEL",
        help="folder of a run, e.g. runs/demo; or a SigLIP: a folder, such as the export of a soup, or OWNER/NAME[@REVISION] of the hub",
    )
    add("--output", type=Path, metavar="FOLDER", help="folder to write; new, empty or an earlier export (default, with --push: none)")
    add("--checkpoint", metavar="WHICH", help="best, last, or a step's number (default best)")
    add(
        "--dtypes",
        nargs="+",
        choices=dtypes,
        help="precisions of the weights: float32, always written; bfloat16, float16: folders in it (default: as the run's configuration)",
    )
    switch = argparse.BooleanOptionalAction
    add("--onnx", action=switch, help="also ONNX, in float32, float16 and int8, or not (default: as the run's configuration)")
    add("--openvino", action=switch, help="also OpenVINO, or not (default: as the run's configuration)")
    add("--open-clip", action=switch, help="also a checkpoint for open_clip, or not (default: as the run's configuration)")
    add(
        "--push",
        metavar="ORG/NAME",
        help="send the export, without --output the run's own, to this repository of the hub (default: nothing is sent)",
    )
    add("--public", action="store_true", help="with --push: everybody may read the repository (default: private)")
    add(
        "--update",
        action="store_true",
        help="with --push: replace the files of a repository that holds some, in one commit (default: refuse)",
    )
    add("--dry-run", action="store_true", help="with --push: show the files and their sizes, and send nothing (default: send)")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, refused where an option needs another."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if asked.push is None and (asked.public or asked.update or asked.dry_run):
        parser.error("--public, --update and --dry-run say how to --push ORG/NAME, which is not given")
    if asked.output is None and asked.push is None:
        parser.error("give --output FOLDER, to export to, or --push ORG/NAME, to send the run's export to the hub, or both")
    if asked.output is None and given_forms(asked):
        parser.error("--dtypes, --onnx, --openvino and --open-clip say what to write, and need --output FOLDER")
    if asked.output is None and asked.checkpoint is not None:
        parser.error("--checkpoint says what to export, and needs --output FOLDER; without it --push sends the run's own export")
    return asked


def given_forms(asked: argparse.Namespace) -> dict[str, Any]:
    """The keys of a configuration's section `export` that the command line gives."""
    return {key: value for key in ("dtypes", "onnx", "openvino", "open_clip") if (value := getattr(asked, key)) is not None}


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments)
    return run_command(lambda: run(asked), writes=[] if asked.output is None else [asked.output], loads_models=asked.output is not None)


def run(asked: argparse.Namespace) -> None:
    """Export, send, or both.

    Raises:
        UserError, OSError: as `export` and `train.push.Push`.
    """
    if asked.output is not None:
        export(asked.run_folder, asked.checkpoint, asked.output, given_forms(asked))
    if asked.push is not None:
        from train.push import Push

        own = asked.run_folder / "export" if (asked.run_folder / "config.yaml").is_file() else asked.run_folder
        push = Push(folder=asked.output or own, name=asked.push, public=asked.public, update=asked.update)
        print("\n".join(push.lines()), flush=True)
        print("dry run   nothing was sent" if asked.dry_run else f"sent      {push.send()}")


def export(run_folder: Path, checkpoint: str | None, output: Path, forms: Mapping[str, Any]) -> None:
    """Export a checkpoint of a run of either kind, a tuned SigLIP or a tuned reranker, or the SigLIP of a folder; print which it was.

    Args:
        run_folder: of a run, or of a SigLIP.
        checkpoint: best, last, or a step's number; None: best. A SigLIP's folder has none.
        forms: keys of the configuration's section `export` in the place of the run's.

    Raises:
        UserError, OSError: as export_checkpoint; or a package is not installed, or a reranker is asked for other forms.
    """
    from eval.encoder.hub import HubModel
    from train.config.export import ExportConfig
    from train.config.load import read_run, read_run_as, read_yaml
    from train.config.reranker import RerankerConfig, is_reranker
    from train.engine.folder import check_replaceable
    from train.export.forms import require_forms
    from train.reranker.finish import export_cross_encoder
    from train.siglip.export import export_again, export_checkpoint

    check_replaceable(output)  # before the weights are read
    is_hub_id = not run_folder.exists() and HubModel.parse(str(run_folder)) is not None
    if is_hub_id or ((run_folder / "config.json").is_file() and not (run_folder / "config.yaml").is_file()):
        if checkpoint is not None:
            raise UserError(f"--checkpoint {checkpoint}: {run_folder} is one model and no run; leave it out")
        asked = ExportConfig(**forms)
        require_forms(asked)
        export_again(str(run_folder), output, asked)
        print(f"exported to {output}: the weights of {run_folder}")
        return
    if is_reranker(read_yaml(run_folder / "config.yaml")):
        if any(value not in (False, ["float32"]) for value in forms.values()):
            raise UserError(f"{run_folder} tuned a reranker, which is exported in float32 alone; leave out {', '.join(forms)}")
        step = export_cross_encoder(read_run_as(RerankerConfig, run_folder), checkpoint or "best", output)
    else:
        config = read_run(run_folder)
        config = config.model_copy(update={"export": ExportConfig(**(config.export.model_dump() | dict(forms)))})
        require_forms(config.export)
        step = export_checkpoint(config, checkpoint or "best", output)
    print(f"step {step} exported to {output}")


if __name__ == "__main__":
    sys.exit(main(command_line()))

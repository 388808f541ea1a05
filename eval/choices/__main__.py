"""python -m eval.choices --model DIR_OR_HUB_ID --data CHOICES --output DIR [--rerank DIR_OR_HUB_ID] [--image-root DIR]

Measures a SigLIP checkpoint, or several (--also), on a choice set, alone and with a cross-encoder. Over several processes: torchrun
--nproc-per-node N -m eval.choices ... Exit codes: 0 done · 2 bad arguments or data · 4 could not write.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.command import run_evaluation
from eval.command_line import CommandParser, add_num_workers, add_strip_punctuation
from eval.files import command_line
from eval.report.files import choices_files
from rerank.options import add_pair_scores, add_reranker, score_fault, score_kind

if TYPE_CHECKING:
    import torch

    from eval.processes import Processes

_EXAMPLE = "choices --model runs/demo/export --data demo/data/choices.parquet --rerank demo/models/blip-itm --output runs/choices"


def make_parser() -> CommandParser:
    """The options."""
    parser = CommandParser("eval.choices", "Measure a SigLIP checkpoint on a choice set, alone and with a cross-encoder.", _EXAMPLE)
    add = parser.add_argument
    add("--model", required=True, help="checkpoint to measure: a folder such as runs/demo/export, or OWNER/NAME[@REVISION] of the hub")
    add(
        "--also",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="another checkpoint, as stage NAME, once for each (default: none)",
    )
    add("--data", required=True, metavar="CHOICES", help="choice set: .jsonl or .parquet (docs/choices.md)")
    add("--image-root", metavar="FOLDER", help="folder that image paths are relative to (default: that of --data)")
    add("--output", required=True, metavar="FOLDER", help="folder for choices.json, choices.parquet and choices.html")
    add_reranker(parser)
    add_pair_scores(parser)
    add_strip_punctuation(parser)
    add_num_workers(parser)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if bad := [value for value in asked.also if "=" not in value]:
        parser.error(f"--also takes NAME=MODEL, found {bad}")
    if fault := score_fault(asked):
        parser.error(fault)
    return asked


def run(asked: argparse.Namespace, processes: "Processes", device: "torch.device") -> None:
    """Measure and report; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model, data or reranker cannot be used, or the report cannot be written.
    """
    from eval.choices.choice_set import read_choices
    from eval.choices.report import print_choices, write_choices
    from eval.encoder.checkpoint import check_encoder
    from eval.encoder.hub import revisions_of
    from eval.errors import Faults, named, reading, writing
    from eval.execution import Execution
    from eval.manifest.names import OPTIONS, calling
    from eval.process_group import use_exact_float32
    from rerank.asked import asked_store
    from rerank.reorder.choices import measure_choices, stage_names
    from rerank.scorers.load import load_scorer
    from rerank.scorers.scorer import ScorerSettings
    from rerank.scorers.supported import check_cross_encoder

    use_exact_float32()
    checkpoints = [("model", asked.model)] + [(name, path) for name, _, path in (text.partition("=") for text in asked.also)]
    with (
        processes.jointly(),
        reading(),
        named({"reranker": "--rerank"}),
        calling(OPTIONS),
    ):  # everything that can be refused is refused before the work
        if processes.is_main:
            with writing(asked.output):
                Path(asked.output).mkdir(parents=True, exist_ok=True)
        faults = Faults()
        with faults.noting():
            stage_names([name for name, _ in checkpoints], None)
        for name, path in checkpoints:
            with faults.noting(), named({"model": "--model" if name == "model" else "--also"}):
                check_encoder(path)
        with faults.noting(), reading():
            choices = read_choices(asked.data, image_root=asked.image_root)
        if asked.rerank is not None and faults.found:
            with faults.noting(), named({"reranker": "--rerank"}):
                check_cross_encoder(asked.rerank)
        faults.tell()
        scorer = None
        if asked.rerank is not None:
            scorer = load_scorer(asked.rerank, device=device, settings=ScorerSettings(score_kind=score_kind(asked)))
        cache = asked_store(asked, processes) if scorer is not None else None
        stage_names([name for name, _ in checkpoints], scorer.name if scorer is not None else None)
    execution = Execution(processes=processes, device=device, num_workers=asked.num_workers)
    strip_punctuation = asked.strip_punctuation
    report = measure_choices(choices, dict(checkpoints), scorer, cache=cache, execution=execution, strip_punctuation=strip_punctuation)
    with processes.jointly():
        if processes.is_main:
            models = [path for _, path in checkpoints] + ([asked.rerank] if asked.rerank is not None else [])
            if found := revisions_of(models):
                report = replace(report, record=report.record | {"hub_revisions": found})
            with writing(asked.output):
                folder = write_choices(asked.output, report)
                print_choices(report.record)
                print(f"report   {folder}/choices.html (with choices.json and choices.parquet)")


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments)
    return run_evaluation(lambda processes, device: run(asked, processes, device), writes=choices_files(asked.output))


if __name__ == "__main__":
    sys.exit(main(command_line()))

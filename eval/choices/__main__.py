"""python -m eval.choices --model DIR_OR_HUB_ID --data CHOICES --output DIR [--rerank DIR_OR_HUB_ID] [--image-root DIR]

Measures a SigLIP checkpoint, or several (--also), on a choice set, alone and with a cross-encoder. Over several processes: torchrun
--nproc-per-node N -m eval.choices ... Exit codes: 0 done · 2 bad arguments or data · 4 could not write.
"""

import argparse
import sys
from pathlib import Path

import torch

from eval.choices.choice_set import read_choices
from eval.choices.report import choices_files, print_choices, write_choices
from eval.command import run_evaluation
from eval.encoder.checkpoint import load_siglip_config
from eval.errors import reading, writing
from eval.execution import Execution
from eval.process_group import use_exact_float32
from eval.processes import Processes
from rerank.options import add_pair_scores, asked_store


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m eval.choices", description="Measure a SigLIP checkpoint on a choice set.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id, e.g. runs/demo/export")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=DIR_OR_HUB_ID", help="another checkpoint, as stage NAME")
    parser.add_argument("--data", required=True, help="choice set: .jsonl or .parquet; see docs/choices.md")
    parser.add_argument("--image-root", help="folder that image paths are relative to (default: the choice set's)")
    parser.add_argument("--output", required=True, help="folder for choices.json, choices.parquet and choices.html")
    parser.add_argument("--rerank", help="cross-encoder folder or hub id, e.g. Salesforce/blip-itm-base-coco")
    add_pair_scores(parser)
    parser.add_argument("--strip-punctuation", action="store_true", help="strip it for SigLIP 2 too (SigLIP's own tokenizer always does)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode pictures (default 2)")
    asked = parser.parse_args(arguments)
    if bad := [value for value in asked.also if "=" not in value]:
        parser.error(f"--also takes NAME=DIR_OR_HUB_ID, found {bad}")
    if asked.num_workers < 0:
        parser.error("--num-workers is at least 0")
    return asked


def run(asked: argparse.Namespace, processes: Processes, device: torch.device) -> None:
    """Measure and report; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model, data or reranker cannot be used, or the report cannot be written.
    """
    from rerank.reorder.choices import measure_choices, stage_names
    from rerank.scorers.load import load_scorer

    use_exact_float32()
    checkpoints = [("model", asked.model)] + [(name, path) for name, _, path in (text.partition("=") for text in asked.also)]
    with processes.jointly(), reading():  # everything that can be refused is refused before the work
        if processes.is_main:
            with writing(asked.output):
                Path(asked.output).mkdir(parents=True, exist_ok=True)
        choices = read_choices(asked.data, image_root=asked.image_root)
        scorer = load_scorer(asked.rerank, device=device) if asked.rerank is not None else None
        cache = asked_store(asked, processes) if scorer is not None else None
        stage_names([name for name, _ in checkpoints], scorer.name if scorer is not None else None)
        for _, path in checkpoints:
            load_siglip_config(path)
    execution = Execution(processes=processes, device=device, num_workers=asked.num_workers)
    strip_punctuation = asked.strip_punctuation
    report = measure_choices(choices, dict(checkpoints), scorer, cache=cache, execution=execution, strip_punctuation=strip_punctuation)
    with processes.jointly():
        if processes.is_main:
            with writing(asked.output):
                folder = write_choices(asked.output, report)
                print_choices(report.record)
                print(f"report   {folder}/choices.html (with choices.json and choices.parquet)")


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments)
    return run_evaluation(lambda processes, device: run(asked, processes, device), writes=choices_files(asked.output))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""python -m eval --model DIR_OR_HUB_ID --data MANIFEST [--split test] --output DIR [--rerank DIR_OR_HUB_ID] [--top-k 32]

Measures a SigLIP checkpoint, or several (--also), on labelled pairs, alone and with a cross-encoder reranking the top K.
The score cache of the cross-encoder is OUTPUT/pair-scores (--pair-scores, --no-pair-scores).
Over several processes: torchrun --nproc-per-node N -m eval ... (or accelerate launch -m eval ...), with the same figures to the last bit.
Exit codes: 0 done · 2 bad arguments or data · 4 could not write · 5 not finite · 6 out of memory.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eval.command import run_evaluation
from eval.command_line import CommandParser, WholeNumber, add_num_workers, add_precision, add_strip_punctuation
from eval.files import command_line
from eval.manifest.names import OPTIONS as MANIFEST_OPTIONS
from eval.manifest.names import calling
from eval.manifest.options import MANIFEST, add_manifest_options, column_fault
from eval.report.files import replacing, report_files
from rerank.options import add_combining, add_reranking, check_options

if TYPE_CHECKING:
    import torch

    from eval.processes import Processes

_EXAMPLE = (
    "eval --model runs/demo/export --data demo/data/scenes.parquet --column group=scene --split test --rerank demo/models/blip-itm "
    "--output runs/again"
)
_NAMES = MANIFEST_OPTIONS | {
    "without_splits": "Name the splits that a run made of these data, --split-file runs/NAME/split.parquet, or leave --split out: then all "
    "rows are measured, and those the model was trained on with them"
}


def make_parser() -> CommandParser:
    """The options."""
    parser = CommandParser("eval", "Measure a SigLIP checkpoint on labelled (image, caption) pairs, alone and reranked.", _EXAMPLE)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="checkpoint to measure: a folder such as runs/demo/export, or OWNER/NAME[@REVISION] of the hub, e.g. "
        "google/siglip-base-patch16-224; also towers in ONNX or OpenVINO, e.g. runs/demo/export/onnx",
    )
    add("--data", required=True, metavar="MANIFEST", help=f"labelled pairs: {MANIFEST}")
    add("--split", help="rows to measure on; needed where the manifest has splits (default: all rows)")
    add(
        "--split-file",
        metavar="split.parquet",
        help="the splits that a run made of data without splits (default: runs/NAME/split.parquet where --model is that run's export)",
    )
    add_manifest_options(parser)
    add(
        "--skip-missing",
        action="store_true",
        help="leave out rows whose picture is not there, counted and listed in OUTPUT/skipped.jsonl (default: they are refused)",
    )
    add("--output", required=True, metavar="FOLDER", help="folder for report.json, queries.parquet and report.html")
    add_reranking(parser)
    add(
        "--also",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="an additional checkpoint, as stage NAME, once for each (default: none)",
    )
    add_combining(parser)
    add(
        "--compare",
        action="append",
        default=[],
        metavar="STAGE:AGAINST",
        help="a pair of stages to compare, once for each (default: each checkpoint against the one before, each reranked stage against "
        "its own)",
    )
    add(
        "--protocol",
        choices=("all", "papers"),
        default="all",
        help="what is relevant: all that the data say; papers: an image's own captions alone, as in published tables (default all)",
    )
    add(
        "--near-duplicates",
        action="store_true",
        help="captions in nearly the same words as a relevant one are relevant too (default: they are not)",
    )
    add(
        "--gallery",
        choices=("every", "different"),
        default="every",
        help="texts that are ranked, and that ask: each caption, or each different normalised text once (class names, product titles) "
        "(default every)",
    )
    add("--qrels", metavar="FILE", help="TREC qrels of additional relevant items, of either direction (default: none)")
    add("--trec", action="store_true", help="also write TREC run and qrels files, to OUTPUT/trec (default: no)")
    add(
        "--trec-depth",
        type=WholeNumber(1),
        metavar="K",
        help="with --trec: items of each query's ranking that a run holds, 1 or more (default 1000, or all where there are fewer)",
    )
    add(
        "--mteb",
        nargs="?",
        const="eng-Latn",
        metavar="LANGUAGE",
        help="also write MTEB result files, to OUTPUT/mteb; LANGUAGE is that of the captions as MTEB writes it, eng-Latn where it is "
        "left out (default: no)",
    )
    add(
        "--skip-broken",
        action="store_true",
        help="leave out pictures that do not decode, counted and listed in OUTPUT/skipped.jsonl; every picture is decoded once more for it "
        "(default: they are refused)",
    )
    add(
        "--slice-by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="also show R@1 for each value of a manifest's column, once for each (default: none)",
    )
    add_strip_punctuation(parser)
    add_precision(parser)
    add_num_workers(parser)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, refused where an option needs another or is not of its form."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    for option, mark, form in (("also", "=", "NAME=MODEL"), ("compare", ":", "STAGE:AGAINST")):
        if bad := [value for value in getattr(asked, option) if mark not in value]:
            parser.error(f"--{option} takes {form}, found {bad}")
    if fault := column_fault(asked):
        parser.error(fault)
    if asked.split_file is not None and asked.split is None:
        parser.error("--split-file needs --split, the one of its splits to measure on")
    if asked.trec_depth is not None and not asked.trec:
        parser.error("--trec-depth is for the runs of --trec; give that too, or leave it out")
    check_options(parser, asked)
    return asked


def run(asked: argparse.Namespace, processes: "Processes", device: "torch.device") -> None:
    """Measure and report; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model, data or reranker cannot be used, or the report cannot be written.
    """
    from eval.dataset.broken import without_broken
    from eval.dataset.retrieval_set import load_split
    from eval.errors import UserError, named, reading, writing
    from eval.execution import Execution
    from eval.manifest.skipped import FILE as SKIPPED
    from eval.manifest.skipped import write_skipped
    from eval.process_group import precision_fault, use_exact_float32
    from eval.report.calibration import FILE as CALIBRATION_FILE
    from eval.report.page.about import about_command
    from eval.report.skipped import skipped_sections
    from eval.report.texts import text_lines
    from rerank.asked import OPTIONS, asked_splits, read_datasets, read_inputs, read_reranker, with_fitting_top_k
    from rerank.evaluation import evaluate_plan, print_record, read_texts

    use_exact_float32()
    with processes.jointly(), reading(), named(OPTIONS), calling(_NAMES):  # all that can be refused, before the work
        if fault := precision_fault(asked.precision, device):
            raise UserError(f"--precision {asked.precision}: {fault}")
        if processes.is_main:
            with writing(asked.output):
                Path(asked.output).mkdir(parents=True, exist_ok=True)
        plan, manifest = read_inputs(asked)
        inputs = list(plan.inputs.values())
    if asked.skip_broken:
        manifest = without_broken(manifest, asked_splits(asked) or [None], Execution(processes=processes, num_workers=asked.num_workers))
    if processes.is_main:
        print("".join(f"{line}\n" for line in manifest.lines()), end="", flush=True)
    with processes.jointly(), reading(), named(OPTIONS), calling(_NAMES):
        dataset, tune_on, calibrate_on = read_datasets(asked, manifest, inputs)
        bank = load_split(manifest, asked.nnn) if asked.nnn is not None else None
        datasets = [dataset] + ([tune_on] if tune_on is not None else [])
        plan, line = with_fitting_top_k(asked, plan, datasets)
        if line and processes.is_main:
            print(line, flush=True)
        reranker = read_reranker(asked, datasets, processes, device)
        plan.pairs(reranker.scorer.name if reranker is not None else None)
    execution = Execution(processes=processes, device=device, num_workers=asked.num_workers, precision=asked.precision)
    texts = read_texts(plan, dataset, execution)
    if processes.is_main:
        for line in text_lines(texts):
            print(f"texts    {line}", flush=True)
    report = evaluate_plan(
        plan, dataset, tune_on=tune_on, bank=bank, calibrate_on=calibrate_on, reranker=reranker, texts=texts, execution=execution
    )
    with processes.jointly():
        if report is not None:
            report = report.adding(*skipped_sections(dataset.skipped)).told(about_command(asked.model))
            with writing(asked.output), replacing(asked.output):
                folder = report.write(asked.output, trec=asked.trec, languages=[asked.mteb] if asked.mteb is not None else None)
                report.write_calibration(folder / CALIBRATION_FILE)
                write_skipped(folder / SKIPPED, list(dict.fromkeys(manifest.skipped)))
                print_record(report.record, folder)


def main() -> None:
    """The command."""
    asked = parse(command_line())
    sys.exit(run_evaluation(lambda processes, device: run(asked, processes, device), writes=report_files(asked.output)))


if __name__ == "__main__":
    main()

"""python -m eval --model DIR_OR_HUB_ID --data MANIFEST [--split test] --output DIR [--rerank DIR_OR_HUB_ID] [--top-k 32]

Measures a SigLIP checkpoint, or several (--also), on labelled pairs, alone and with a cross-encoder reranking the top K.
The score cache of the cross-encoder is OUTPUT/pair-scores (--pair-scores, --no-pair-scores).
Over several processes: torchrun --nproc-per-node N -m eval ... (or accelerate launch -m eval ...), with the same figures to the last bit.
Exit codes: 0 done · 2 bad arguments or data · 4 could not write · 5 not finite · 6 out of memory.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.command import run_evaluation
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.dataset.truth import with_ground_truth
from eval.encoder.checkpoint import load_siglip_config
from eval.errors import named, reading, writing
from eval.execution import Execution
from eval.manifest.manifest import COLUMNS, read_manifest
from eval.process_group import use_exact_float32
from eval.processes import Processes
from eval.report.report import report_files
from rerank.evaluation import Reranker, evaluate_plan, print_record
from rerank.expansions.parse import kept_columns
from rerank.options import OPTIONS, add_combining, add_reranking, asked_store, check_options, read_plan


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m eval", description="Measure a SigLIP checkpoint on labelled (image, caption) pairs.")
    parser.add_argument(
        "--model", required=True, help="checkpoint folder or hub id, e.g. google/siglip-base-patch16-224 or runs/demo/export"
    )
    parser.add_argument(
        "--data", required=True, help="manifest: .jsonl, .csv, .parquet, a saved `datasets` folder, an image folder, or a hub id"
    )
    parser.add_argument("--split", help="rows to measure on; needed where the manifest has splits")
    parser.add_argument("--image-root", help="folder that image paths are relative to (default: the manifest's)")
    parser.add_argument(
        "--column", action="append", default=[], metavar="OURS=THEIRS", help=f"name of a column in the manifest; ours: {', '.join(COLUMNS)}"
    )
    parser.add_argument("--output", required=True, help="folder for report.json, queries.parquet and report.html")
    add_reranking(parser)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=DIR_OR_HUB_ID", help="an additional checkpoint, as stage NAME")
    add_combining(parser)
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="STAGE:AGAINST",
        help="pairs to compare (default: each checkpoint against the one before, each reranked stage against its own)",
    )
    parser.add_argument(
        "--protocol", choices=("all", "papers"), default="all", help="papers: an image's own captions alone count, as in published tables"
    )
    parser.add_argument(
        "--near-duplicates", action="store_true", help="captions in nearly the same words as a relevant one are relevant too"
    )
    parser.add_argument("--qrels", help="TREC qrels of additional relevant items, of either direction")
    parser.add_argument("--trec", action="store_true", help="also write TREC run and qrels files, to OUTPUT/trec")
    parser.add_argument("--slice-by", action="append", default=[], metavar="COLUMN", help="also show R@1 per value of a manifest column")
    parser.add_argument("--strip-punctuation", action="store_true", help="strip it for SigLIP 2 too (SigLIP's own tokenizer always does)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode pictures (default 2)")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, refused where an option needs another or is not of its form."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    for option, mark, form in (("column", "=", "OURS=THEIRS"), ("also", "=", "NAME=DIR_OR_HUB_ID"), ("compare", ":", "STAGE:AGAINST")):
        if bad := [value for value in getattr(asked, option) if mark not in value]:
            parser.error(f"--{option} takes {form}, found {bad}")
    if asked.num_workers < 0:
        parser.error("--num-workers is at least 0")
    check_options(parser, asked)
    return asked


def run(asked: argparse.Namespace, processes: Processes, device: torch.device) -> None:
    """Measure and report; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model, data or reranker cannot be used, or the report cannot be written.
    """
    use_exact_float32()
    with processes.jointly(), reading(), named(OPTIONS):  # all that can be refused, before the work
        if processes.is_main:
            with writing(asked.output):
                Path(asked.output).mkdir(parents=True, exist_ok=True)
        plan = read_plan(asked)
        dataset, tune_on = read_datasets(asked, kept_columns(plan.expansions.values()))
        reranker = read_reranker(asked, [dataset] + ([tune_on] if tune_on is not None else []), processes, device)
        plan.pairs(reranker.scorer.name if reranker is not None else None)
        for path in plan.checkpoints.values():
            load_siglip_config(path)
    execution = Execution(processes=processes, device=device, num_workers=asked.num_workers)
    report = evaluate_plan(plan, dataset, tune_on=tune_on, reranker=reranker, execution=execution)
    with processes.jointly():
        if report is not None:
            with writing(asked.output):
                folder = report.write(asked.output, trec=asked.trec)
                print_record(report.record, folder)


def read_datasets(asked: argparse.Namespace, columns: Sequence[str]) -> tuple[RetrievalSet, RetrievalSet | None]:
    """The split to measure on, with the ground truth asked for, and the one to choose on, if there is one: by the same rule without qrels.

    Raises:
        UserError: the data or the qrels cannot be used.
    """
    manifest = read_manifest(
        asked.data,
        image_root=asked.image_root,
        columns=dict(pair.split("=", 1) for pair in asked.column),
        require_splits=[split for split in (asked.split, asked.choose_on) if split is not None],
        slice_by=asked.slice_by,
        keep=columns,
    )
    qrels = read_qrels(asked.qrels) if asked.qrels is not None else None
    protocol, near_duplicates = asked.protocol, asked.near_duplicates
    dataset = with_ground_truth(load_split(manifest, asked.split), protocol=protocol, near_duplicates=near_duplicates, qrels=qrels)
    if asked.choose_on is None:
        return dataset, None
    return dataset, with_ground_truth(load_split(manifest, asked.choose_on), protocol=protocol, near_duplicates=near_duplicates)


def read_reranker(
    asked: argparse.Namespace, datasets: Sequence[RetrievalSet], processes: Processes, device: torch.device
) -> Reranker | None:
    """The reranker, if one is asked for.

    Raises:
        UserError: it cannot be used, or --top-k exceeds the gallery of one of the data sets.
    """
    from rerank.reorder.stages import check_top_k
    from rerank.scorers.load import load_scorer
    from rerank.scorers.scorer import ScorerSettings

    if asked.rerank is None:
        return None
    for dataset in datasets:
        check_top_k(dataset, asked.top_k)
    scorer = load_scorer(asked.rerank, device=device, settings=ScorerSettings(score_kind=asked.score))
    return Reranker(scorer, asked_store(asked, processes))


def main() -> None:
    """The command."""
    asked = parse(sys.argv[1:])
    sys.exit(run_evaluation(lambda processes, device: run(asked, processes, device), writes=report_files(asked.output)))


if __name__ == "__main__":
    main()

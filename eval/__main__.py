"""python -m eval --model DIR_OR_HUB_ID --data MANIFEST [--split test] --output DIR [--rerank DIR_OR_HUB_ID] [--top-k 32]

Measures a SigLIP checkpoint on labelled pairs, alone and with a cross-encoder reranking its top K. Exit codes: 0 done · 2 bad arguments or
data · 4 could not write.
"""

import argparse
import sys
from pathlib import Path

import torch

from eval.checkpoint import load_siglip
from eval.dataset import load_split
from eval.errors import UserError
from eval.evaluator import evaluate
from eval.first_stage import progress_bar, retrieve, use_exact_float32
from eval.manifest import COLUMNS, read_manifest
from eval.processes import Processes
from eval.report import print_report, report_record, write_report


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m eval", description="Measure a SigLIP checkpoint on labelled (image, caption) pairs.")
    parser.add_argument(
        "--model", required=True, help="checkpoint folder or hub id, e.g. google/siglip-base-patch16-224 or runs/demo/export"
    )
    parser.add_argument("--data", required=True, help="manifest: .jsonl, .csv, .parquet, a folder or glob of .parquet, or an image folder")
    parser.add_argument("--split", help="rows to measure on; needed where the manifest has splits")
    parser.add_argument("--image-root", help="folder that image paths are relative to (default: the manifest's)")
    parser.add_argument(
        "--column", action="append", default=[], metavar="OURS=THEIRS", help=f"name of a column in the manifest; ours: {', '.join(COLUMNS)}"
    )
    parser.add_argument("--output", required=True, help="folder for report.json, queries.parquet and report.html")
    parser.add_argument("--rerank", help="cross-encoder folder or hub id, e.g. Salesforce/blip-itm-base-coco")
    parser.add_argument("--top-k", type=int, default=32, help="candidates per query the reranker scores (default 32)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode pictures (default 2)")
    asked = parser.parse_args(arguments)
    bad = [pair for pair in asked.column if "=" not in pair]
    if bad:
        parser.error(f"--column takes OURS=THEIRS, found {bad}")
    if asked.top_k < 1 or asked.num_workers < 0:
        parser.error("--top-k is at least 1 and --num-workers at least 0")
    return asked


def run(asked: argparse.Namespace) -> int:
    """Measure and report.

    Raises:
        UserError: model, data or reranker cannot be used.
        OSError: the report cannot be written.
    """
    from rerank.scorer import load_scorer
    from rerank.stages import check_top_k, reranked_stages

    use_exact_float32()
    Path(asked.output).mkdir(parents=True, exist_ok=True)  # before the work, not after it
    manifest = read_manifest(
        asked.data,
        image_root=asked.image_root,
        columns=dict(pair.split("=", 1) for pair in asked.column),
        require_splits=[asked.split] if asked.split is not None else [],
    )
    dataset = load_split(manifest, asked.split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = None
    if asked.rerank is not None:
        check_top_k(dataset, asked.top_k)
        scorer = load_scorer(asked.rerank, device=device)
    model, inputs = load_siglip(asked.model)
    model.to(device)
    with progress_bar("embedding", dataset, Processes()) as bar:
        depth = asked.top_k if scorer is not None else 10
        stages = [retrieve("model", model, inputs, dataset, depth=depth, num_workers=asked.num_workers, on_progress=bar.update)]
    if scorer is not None:
        stages += reranked_stages(dataset, stages, scorer, asked.top_k)
    figures = evaluate(dataset, stages)
    folder = write_report(asked.output, figures)
    print_report(report_record(figures))
    print(f"report   {folder}/report.html (report.json, queries.parquet beside it)")
    return 0


def main() -> None:
    """The command."""
    from transformers.utils import logging

    asked = parse(sys.argv[1:])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        code = run(asked)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(f"error: could not write {asked.output}: {error}", file=sys.stderr)
        code = 4
    sys.exit(code)


if __name__ == "__main__":
    main()

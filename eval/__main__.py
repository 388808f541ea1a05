"""python -m eval --model DIR_OR_HUB_ID --data MANIFEST [--split test] --output DIR [--rerank DIR_OR_HUB_ID] [--top-k 32]

Measures a SigLIP checkpoint, or several (--also), on labelled pairs, alone and with a cross-encoder reranking the top K.
What a cross-encoder says is kept in OUTPUT/pair-scores (--pair-scores, --no-pair-scores).
Over several processes: torchrun --nproc-per-node N -m eval ... (or accelerate launch -m eval ...), with the same figures to the last bit.
Exit codes: 0 done · 2 bad arguments or data · 4 could not write.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eval.checkpoint import load_siglip, load_siglip_config
from eval.dataset import RetrievalSet, load_split
from eval.errors import UserError, reading, writing
from eval.evaluator import Figures, Stage, evaluate
from eval.first_stage import progress_bar, retrieve, use_exact_float32
from eval.gallery import gallery
from eval.manifest import COLUMNS, read_manifest
from eval.process_group import run_command
from eval.processes import Processes
from eval.qrels import read_qrels
from eval.report import print_report, report_record, write_report
from eval.stage_faults import pair_faults
from eval.trec import write_trec
from eval.truth import judged_by
from rerank.pair_store import add_pair_scores, asked_store

if TYPE_CHECKING:
    from rerank.scorer import PairScorer


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
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
    parser.add_argument("--rerank", help="cross-encoder folder or hub id, e.g. Salesforce/blip-itm-base-coco")
    parser.add_argument("--top-k", type=int, default=32, help="candidates per query the reranker scores (default 32)")
    add_pair_scores(parser)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=DIR_OR_HUB_ID", help="a further checkpoint, as stage NAME")
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
    parser.add_argument("--near-duplicates", action="store_true", help="captions in nearly the same words as a right one are right too")
    parser.add_argument("--qrels", help="TREC qrels of further right answers, of either direction")
    parser.add_argument("--trec", action="store_true", help="also write TREC run and qrels files, to OUTPUT/trec")
    parser.add_argument("--slice-by", action="append", default=[], metavar="COLUMN", help="also show R@1 per value of a manifest column")
    parser.add_argument("--strip-punctuation", action="store_true", help="strip it for SigLIP 2 too (SigLIP's own tokenizer always does)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode pictures (default 2)")
    asked = parser.parse_args(arguments)
    for option, mark, form in (("column", "=", "OURS=THEIRS"), ("also", "=", "NAME=DIR_OR_HUB_ID"), ("compare", ":", "STAGE:AGAINST")):
        if bad := [value for value in getattr(asked, option) if mark not in value]:
            parser.error(f"--{option} takes {form}, found {bad}")
    if asked.top_k < 1 or asked.num_workers < 0:
        parser.error("--top-k is at least 1 and --num-workers at least 0")
    return asked


def run(asked: argparse.Namespace, processes: Processes, device: torch.device) -> None:
    """Measure and report; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model, data or reranker cannot be used, or the report cannot be written.
    """
    from rerank.stages import reranked_stages

    use_exact_float32()
    pairs = [(stage, against) for stage, _, against in (text.partition(":") for text in asked.compare)]
    checkpoints = [("model", asked.model)] + [(name, path) for name, _, path in (text.partition("=") for text in asked.also)]
    with processes.jointly(), reading():  # all that can be refused, before the work
        if processes.is_main:
            with writing(asked.output):
                Path(asked.output).mkdir(parents=True, exist_ok=True)
        dataset = read_dataset(asked)
        scorer = read_scorer(asked, dataset, device)
        kept = asked_store(asked, processes) if scorer is not None else None
        check_names([name for name, _ in checkpoints], scorer.name if scorer is not None else None, pairs)
        for _, path in checkpoints:
            load_siglip_config(path)
    stages = [_retrieve(asked, name, path, dataset, processes, device) for name, path in checkpoints]
    if scorer is not None:
        stages += reranked_stages(dataset, stages, scorer, asked.top_k, kept=kept, processes=processes)
    with processes.jointly():
        if processes.is_main:
            names = [name for name, _ in checkpoints]
            report(asked, evaluate(dataset, stages, pairs or default_pairs(names, scorer.name if scorer is not None else None)), dataset)


def read_dataset(asked: argparse.Namespace) -> RetrievalSet:
    """The split, judged as asked.

    Raises:
        UserError: the data or the qrels cannot be used.
    """
    manifest = read_manifest(
        asked.data,
        image_root=asked.image_root,
        columns=dict(pair.split("=", 1) for pair in asked.column),
        require_splits=[asked.split] if asked.split is not None else [],
        slice_by=asked.slice_by,
    )
    qrels = read_qrels(asked.qrels) if asked.qrels is not None else None
    return judged_by(load_split(manifest, asked.split), protocol=asked.protocol, near_duplicates=asked.near_duplicates, qrels=qrels)


def read_scorer(asked: argparse.Namespace, dataset: RetrievalSet, device: torch.device) -> "PairScorer | None":
    """The reranker, if one is asked for.

    Raises:
        UserError: it cannot be used, or --top-k exceeds the gallery.
    """
    from rerank.scorer import load_scorer
    from rerank.stages import check_top_k

    if asked.rerank is None:
        return None
    check_top_k(dataset, asked.top_k)
    return load_scorer(asked.rerank, device=device)


def _retrieve(asked: argparse.Namespace, name: str, path: str, dataset: RetrievalSet, processes: Processes, device: torch.device) -> Stage:
    with processes.jointly(), reading():
        model, inputs = load_siglip(path, strip_punctuation=asked.strip_punctuation)
        model.to(device)  # type: ignore[arg-type]  # transformers wraps it
    depth = asked.top_k if asked.rerank is not None else 10
    with progress_bar(f"embedding ({name})", dataset, processes) as bar:
        shared: Any = {"processes": processes, "num_workers": asked.num_workers, "on_progress": bar.update}
        return retrieve(name, model, inputs, dataset, depth=depth, **shared)


def report(asked: argparse.Namespace, figures: Figures, dataset: RetrievalSet) -> None:
    """Write and print.

    Raises:
        WriteError: the files cannot be written.
    """
    shown = gallery(dataset, figures)
    with writing(asked.output):
        folder = write_report(asked.output, figures, gallery=shown)
        if asked.trec:
            write_trec(folder / "trec", figures.queries, dataset)
        print_report(report_record(figures))
        print(f"report   {folder}/report.html (report.json, queries.parquet beside it)")


def default_pairs(names: list[str], scorer_name: str | None) -> list[tuple[str, str]]:
    """Each checkpoint against the one before, each reranked stage against its own first stage."""
    pairs = list(zip(names[1:], names, strict=False))
    return pairs + ([(f"{name}+{scorer_name}", name) for name in names] if scorer_name is not None else [])


def check_names(names: list[str], scorer_name: str | None, pairs: list[tuple[str, str]]) -> None:
    """Refuse a name given twice, or a pair of stages that cannot be compared, before the work.

    Raises:
        UserError: naming what is wrong.
    """
    bad = [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)]
    if bad or len(set(names)) != len(names):
        raise UserError(f"--also: each checkpoint needs its own name of letters, digits and ._-, and --model's is 'model'; found {names}")
    known = names + ([f"{name}+{scorer_name}" for name in names] if scorer_name is not None else [])
    if faults := pair_faults(pairs, known):
        raise UserError(f"--compare: {'; '.join(faults)}")


def main() -> None:
    """The command."""
    asked = parse(sys.argv[1:])
    sys.exit(run_command(lambda processes, device: run(asked, processes, device)))


if __name__ == "__main__":
    main()

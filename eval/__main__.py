"""python -m eval --model DIR_OR_HUB_ID --data MANIFEST [--split test] --output DIR [--rerank DIR_OR_HUB_ID] [--top-k 32]

Measures a SigLIP checkpoint, or several (--also), on labelled pairs, alone and with a cross-encoder reranking the top K.
What a cross-encoder says is kept in OUTPUT/pair-scores (--pair-scores, --no-pair-scores).
Over several processes: torchrun --nproc-per-node N -m eval ... (or accelerate launch -m eval ...), with the same figures to the last bit.
Exit codes: 0 done · 2 bad arguments or data · 4 could not write.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from eval.command import run_evaluation
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.dataset.truth import with_ground_truth
from eval.encoder.checkpoint import load_siglip_config
from eval.errors import UserError, reading, writing
from eval.manifest.manifest import COLUMNS, read_manifest
from eval.metrics.checks import pair_faults
from eval.metrics.evaluate import Figures, evaluate
from eval.process_group import use_exact_float32
from eval.processes import Processes
from eval.report.gallery import gallery
from eval.report.report import print_report, report_record, write_report
from eval.report.trec import write_trec
from rerank.combine.embedded_sets import EmbeddedSets
from rerank.combine.expansion_effects import write_expansions
from rerank.combine.first_stages import MINIMUM_DEPTH, FirstStages
from rerank.expansions.parse import kept_columns
from rerank.options import (
    DEFAULT_MAX_LOSS,
    add_combining,
    add_reranking,
    asked_store,
    check_combining,
    check_reranking,
    chooses,
    read_combining,
)

if TYPE_CHECKING:
    from rerank.reorder.plan import Plan
    from rerank.scorers.scorer import PairScorer


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
    add_reranking(parser)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=DIR_OR_HUB_ID", help="a further checkpoint, as stage NAME")
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
    check_reranking(parser, asked)
    check_combining(parser, asked)
    return asked


def run(asked: argparse.Namespace, processes: Processes, device: torch.device) -> None:
    """Measure and report; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model, data or reranker cannot be used, or the report cannot be written.
    """
    use_exact_float32()
    pairs = [(stage, against) for stage, _, against in (text.partition(":") for text in asked.compare)]
    with processes.jointly(), reading():  # all that can be refused, before the work
        if processes.is_main:
            with writing(asked.output):
                Path(asked.output).mkdir(parents=True, exist_ok=True)
        firsts = read_first_stages(asked, processes, device)
        dataset, *choosing_sets = read_datasets(asked, kept_columns(firsts.combining.expansions.values()))
        plan = read_plan(asked)
        scorer = read_scorer(asked, [dataset, *choosing_sets], device)
        kept = asked_store(asked, processes) if scorer is not None else None
        names = [*firsts.sets.checkpoints, *firsts.combining.names]
        check_names(list(firsts.sets.checkpoints), names, plan.names(names, scorer.name) if scorer is not None else [], pairs)
        for path in firsts.sets.checkpoints.values():
            load_siglip_config(path)
    firsts.sets.prepare([dataset, *choosing_sets])
    if choosing_sets:
        firsts.choose(choosing_sets[0], ensemble=chooses(asked, "ensemble"), expansion=chooses(asked, "expansion"))
        if not plan.arms.any:
            firsts.sets.forget(choosing_sets[0])
    stages, reranked = firsts.measured(dataset), None
    pairs = pairs or default_pairs(firsts) + (plan.pairs(names, scorer.name) if scorer is not None else [])
    if scorer is not None:
        choose_on = (choosing_sets[0], firsts.stages) if plan.arms.any else None
        reranked = plan.stages(dataset, stages, scorer, choose_on=choose_on, kept=kept, processes=processes)
        stages += reranked.stages
    with processes.jointly():
        if processes.is_main:
            figures = evaluate(dataset, stages, pairs)
            if reranked is not None:
                figures.sections.update(reranked.sections(figures, dataset))
            figures.sections.update(firsts.sections(figures, dataset, scorer.name if scorer is not None else None))
            report(asked, figures, dataset, firsts.table(figures, dataset))


def read_first_stages(asked: argparse.Namespace, processes: Processes, device: torch.device) -> FirstStages:
    """What makes the first stages.

    Raises:
        UserError: a member or an expansion cannot be read.
    """
    members, combining = read_combining(asked)
    others = [(name, path) for name, _, path in (text.partition("=") for text in asked.also)]
    if len(dict(others)) < len(others) or {"model", *members} & set(dict(others)):
        raise UserError(
            "--also: each checkpoint needs its own name, and --model's is 'model' (--ensemble takes model-2, model-3, ... and ensemble); "
            f"found {[name for name, _ in others]}"
        )
    sets = EmbeddedSets(
        {"model": asked.model} | dict(others) | members,
        combining.expansions,
        combining.expanded,
        device,
        processes,
        num_workers=asked.num_workers,
        strip_punctuation=asked.strip_punctuation,
    )
    return FirstStages(combining, sets, asked.top_k if asked.rerank is not None else MINIMUM_DEPTH)


def read_datasets(asked: argparse.Namespace, columns: Sequence[str]) -> list[RetrievalSet]:
    """The split to measure on, judged as asked, and the one to choose on, if there is one: by the same rule but for the qrels.

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
    rule: Any = {"protocol": asked.protocol, "near_duplicates": asked.near_duplicates}
    sets = [with_ground_truth(load_split(manifest, asked.split), **rule, qrels=qrels)]
    return sets + ([with_ground_truth(load_split(manifest, asked.choose_on), **rule)] if asked.choose_on is not None else [])


def read_plan(asked: argparse.Namespace) -> "Plan":
    """How to rerank, where --rerank is given."""
    from rerank.reorder.plan import Plan
    from rerank.reorder.tuned_stages import Asked

    max_loss = DEFAULT_MAX_LOSS if asked.max_loss is None else asked.max_loss
    arms = Asked(fusion=chooses(asked, "fusion"), max_loss=max_loss if chooses(asked, "skipping") else None)
    return Plan(asked.top_k, asked.seconds, asked.skip_margin, arms)


def read_scorer(asked: argparse.Namespace, datasets: list[RetrievalSet], device: torch.device) -> "PairScorer | None":
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
    return load_scorer(asked.rerank, device=device, settings=ScorerSettings(score_kind=asked.score))


def report(asked: argparse.Namespace, figures: Figures, dataset: RetrievalSet, expansions: pa.Table | None) -> None:
    """Write and print.

    Args:
        expansions: what each further view did to each query.

    Raises:
        WriteError: the files cannot be written.
    """
    shown = gallery(dataset, figures)
    with writing(asked.output):
        folder = write_report(asked.output, figures, gallery=shown)
        if expansions is not None:
            write_expansions(folder / "expansions.parquet", expansions)
        if asked.trec:
            write_trec(folder / "trec", figures.queries, dataset)
        print_report(report_record(figures))
        print(f"report   {folder}/report.html (report.json, queries.parquet beside it)")


def default_pairs(firsts: FirstStages) -> list[tuple[str, str]]:
    """Each checkpoint against the one before, members of the ensemble among them; then the ensemble and what is expanded."""
    names = list(firsts.sets.checkpoints)
    return list(zip(names[1:], names, strict=False)) + firsts.combining.pairs


def check_names(checkpoints: list[str], names: list[str], reranked_names: list[str], pairs: list[tuple[str, str]]) -> None:
    """Refuse a name given twice, or a pair of stages that cannot be compared, before the work.

    Raises:
        UserError: naming what is wrong.
    """
    bad = [name for name in checkpoints if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)]
    if bad or len(set(names)) != len(names):
        raise UserError(
            "--also: each checkpoint needs its own name of letters, digits and ._-, and --model's is 'model' (--ensemble takes model-2, "
            f"model-3, ... and ensemble); found {names}"
        )
    if faults := pair_faults(pairs, names + reranked_names):
        raise UserError(f"--compare: {'; '.join(faults)}")


def main() -> None:
    """The command."""
    asked = parse(sys.argv[1:])
    sys.exit(run_evaluation(lambda processes, device: run(asked, processes, device)))


if __name__ == "__main__":
    main()

"""python -m rerank --model M --rerank B --images FOLDER --captions FILE --top-k 32 --output OUT.parquet

Retrieves the captions of each picture and the pictures of each caption, and reranks the top of them with a cross-encoder; no ground truth
is needed. Writes a table of both stages' scores and ranks, and next to it a page with pictures.
Over several processes: torchrun --nproc-per-node N -m rerank ..., with the same table to the last byte.
Exit codes: 0 done · 2 bad arguments or data · 4 could not write · 5 not finite · 6 out of memory.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.command import run_evaluation
from eval.encoder.checkpoint import hash_weights, load_siglip, load_siglip_config
from eval.errors import reading
from eval.execution import Execution
from eval.manifest.manifest import COLUMNS
from eval.process_group import use_exact_float32
from eval.processes import Processes
from eval.progress import bar
from eval.search.ranking import DIRECTIONS, Direction
from rerank.answers.answers import Answers, fitting_budget, reranked_answers, within_budget
from rerank.answers.collection import read_collection
from rerank.answers.first_stage import FirstAnswers, find_first
from rerank.answers.output import check_output, page_path, write_output
from rerank.answers.summary import broken_lines, closing_lines, reading_lines
from rerank.answers.table import SUFFIXES
from rerank.options import add_pair_scores, asked_store
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import PairScorer, ScorerSettings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rerank",
        description="Captions for each picture and pictures for each caption: retrieved by SigLIP, reranked by a cross-encoder.",
    )
    add = parser.add_argument
    add("--model", required=True, help="SigLIP checkpoint folder or hub id, e.g. google/siglip-base-patch16-224 or runs/demo/export")
    add(
        "--rerank",
        help="cross-encoder folder or hub id, e.g. Salesforce/blip-itm-base-coco; without it the first stage's answers are written",
    )
    add(
        "--images",
        required=True,
        help="folder of pictures, searched with all folders below it; or a manifest (.jsonl, .csv, .parquet, ...)",
    )
    add("--captions", help="one caption a line (.txt), or .csv, .jsonl, .parquet; without it the captions that --images has itself")
    add("--output", required=True, help=f"table to write: *{', *'.join(SUFFIXES)}; the page is next to it, as .html")
    add("--top-k", type=int, default=32, help="answers to each query, all of which the reranker scores (default 32)")
    add("--direction", choices=(*DIRECTIONS, "both"), default="both", help="which side the queries are of (default both)")
    add("--pages", type=int, default=100, metavar="N", help="queries the page shows at most, 0 for no page (default 100)")
    add("--skip-broken", action="store_true", help="leave out pictures that do not decode instead of refusing them")
    add("--caption-column", metavar="NAME", help="column of the captions in a table (default: caption, captions or text)")
    add("--caption-id-column", metavar="NAME", help="column of a table that names each caption (default: its line or row number)")
    add("--split", help="of a manifest: only the pictures of this split")
    add("--image-root", help="of a manifest: folder that image paths are relative to (default: the manifest's)")
    add("--column", action="append", default=[], metavar="OURS=THEIRS", help=f"of a manifest: a column's name; ours: {', '.join(COLUMNS)}")
    add("--seconds", type=float, help="rerank as many answers to each query, up to --top-k, as fit into so many seconds")
    add("--skip-margin", type=float, metavar="X", help="do not score what trails the first of its list by X or more, in cosine")
    add_pair_scores(parser, "next to OUTPUT, in OUTPUT.pair-scores")
    add("--precision", choices=("float32", "bfloat16"), help="of the reranker's towers (default float32)")
    add("--strip-punctuation", action="store_true", help="strip it for SigLIP 2 too (SigLIP's own tokenizer always does)")
    add("--num-workers", type=int, default=2, help="processes that decode pictures (default 2)")
    asked = parser.parse_args(arguments)
    if fault := argument_fault(asked):
        parser.error(fault)
    return asked


def argument_fault(asked: argparse.Namespace) -> str:
    """What the arguments alone show to be wrong; empty if nothing."""
    if asked.top_k < 1 or asked.pages < 0 or asked.num_workers < 0:
        return "--top-k is at least 1, --pages and --num-workers at least 0"
    if bad := [value for value in asked.column if "=" not in value]:
        return f"--column takes OURS=THEIRS, found {bad}"
    if unknown := sorted({value.partition("=")[0] for value in asked.column} - set(COLUMNS)):
        return f"--column: {unknown} are not columns of ours, which are {list(COLUMNS)}"
    given = [name for name in ("precision", "seconds", "skip_margin", "pair_scores") if getattr(asked, name) is not None]
    if asked.rerank is None and (given or asked.no_pair_scores):
        return f"--{(given or ['no_pair_scores'])[0].replace('_', '-')} is about the reranker: give --rerank too, or leave it out"
    if asked.seconds is not None and not asked.seconds > 0:
        return "--seconds is above 0"
    if asked.skip_margin is not None and not asked.skip_margin >= 0:
        return "--skip-margin is a difference of cosines, 0 or more"
    if asked.caption_id_column is not None and asked.captions is None:
        return "--caption-id-column is of a table of captions: give --captions too, or leave it out"
    if Path(asked.output).suffix.lower() not in SUFFIXES:
        return f"--output {asked.output}: expected a name that ends in one of {', '.join(SUFFIXES)}"
    return ""


def run(asked: argparse.Namespace, processes: Processes, device: torch.device) -> None:
    """Find, rerank and write; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model, reranker, pictures or captions cannot be used, or the files cannot be written.
    """
    use_exact_float32()
    output = Path(asked.output)
    directions: Sequence[Direction] = DIRECTIONS if asked.direction == "both" else (asked.direction,)
    with processes.jointly(), reading():  # everything that can be refused is refused before the work
        if processes.is_main:
            check_output(output, {"--images": asked.images, "--captions": asked.captions})
        load_siglip_config(asked.model)
        collection = read_collection(
            asked.images,
            asked.captions,
            image_root=asked.image_root,
            columns=dict(pair.split("=", 1) for pair in asked.column),
            split=asked.split,
            caption_column=asked.caption_column,
            caption_id_column=asked.caption_id_column,
        )
        scorer, cache = None, None
        if asked.rerank is not None:
            scorer = load_scorer(asked.rerank, device=device, settings=ScorerSettings(precision=asked.precision or "float32"))
            cache = asked_store(asked, processes, output.with_suffix(".pair-scores"))
        model, inputs = load_siglip(asked.model, strip_punctuation=asked.strip_punctuation)
    collection.check_shared(processes)
    log(processes, reading_lines(collection, directions, asked.top_k))
    model.to(device)  # type: ignore[arg-type]  # transformers wraps it
    weights = hash_weights(model)
    num_rows = (collection.num_images + collection.num_captions) // processes.world_size
    with bar(num_rows, "embed", "row", show=processes.is_main, leave=False) as shown:
        execution = Execution(processes=processes, device=device, num_workers=asked.num_workers, on_progress=shown.update)
        found = find_first(model, inputs, collection, directions, asked.top_k, skip_broken=asked.skip_broken, execution=execution)
    del model  # the reranker may need the memory
    log(processes, broken_lines(found, collection))
    if scorer is not None and asked.seconds is not None:
        budget = fitting_budget(found, scorer, asked.seconds, processes)
        log(processes, [f"budget     {budget}"])
        found = within_budget(found, budget)
    scores = None
    if scorer is None:
        answers = [Answers.of(ranking, None) for ranking in found.rankings.values()]
    else:
        skip_margin = asked.skip_margin
        answers, scores = reranked_answers(found, scorer, skip_margin=skip_margin, cache=cache, processes=processes)
    with processes.jointly():
        if processes.is_main:
            page = write_output(output, found, answers, provenance(asked, found, weights, scorer), asked.pages)
            log(processes, closing_lines(found, answers, scores, output, page))


def provenance(asked: argparse.Namespace, found: FirstAnswers, weights: str, scorer: PairScorer | None) -> dict[str, Any]:
    """What made the table, as a .parquet file records it."""
    return {
        "model": asked.model,
        "model_weights_sha256": weights,
        "logit_scale": found.scale,
        "logit_bias": found.bias,
        "rerank": asked.rerank,
        "rerank_fingerprint": scorer.fingerprint if scorer is not None else None,
        "top_k": asked.top_k,
        "seconds": asked.seconds,
        "skip_margin": asked.skip_margin,
        "num_images": found.collection.num_images,
        "num_captions": found.collection.num_captions,
        "num_left_out": len(found.broken),
    }


def log(processes: Processes, lines: Sequence[str]) -> None:
    """Print lines, on the main process."""
    if processes.is_main:
        for line in lines:
            print(line, flush=True)


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments)
    output = Path(asked.output)
    return run_evaluation(lambda processes, device: run(asked, processes, device), writes=[output, page_path(output)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

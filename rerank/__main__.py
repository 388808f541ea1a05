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
from typing import TYPE_CHECKING, Any

from eval.command import run_evaluation
from eval.command_line import CommandParser, WholeNumber, add_num_workers, add_strip_punctuation
from eval.files import command_line
from eval.manifest.options import MANIFEST, add_manifest_options, column_fault, columns_of
from rerank.answers.files import SUFFIXES, page_path
from rerank.options import add_pair_scores, add_reranker, score_fault, score_kind

if TYPE_CHECKING:
    import torch

    from eval.execution import Execution
    from eval.processes import Processes
    from eval.search.ranking import Direction
    from rerank.answers.answers import Answers
    from rerank.answers.collection import Collection
    from rerank.answers.first_stage import FirstAnswers
    from rerank.scorers.scorer import PairScorer
    from rerank.scoring.pair_scores import PairScores
    from rerank.scoring.score_cache import ScoreCache

_EXAMPLE = (
    "rerank --model runs/demo/export --images demo/data/scenes.parquet --split test --rerank demo/models/blip-itm --top-k 8 "
    "--output runs/answers.parquet"
)


def make_parser() -> CommandParser:
    """The options."""
    description = "Captions for each picture and pictures for each caption: retrieved by SigLIP, reranked by a cross-encoder."
    parser = CommandParser("rerank", description, _EXAMPLE)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="SigLIP checkpoint: a folder such as runs/demo/export, or OWNER/NAME[@REVISION] of the hub",
    )
    add_reranker(parser)
    add(
        "--images",
        required=True,
        metavar="FOLDER_OR_MANIFEST",
        help=f"folder of pictures, searched with all folders below it; or a manifest: {MANIFEST}",
    )
    add(
        "--captions",
        metavar="FILE",
        help="one caption a line (.txt), or .csv, .jsonl, .parquet (default: the captions that --images has itself)",
    )
    add("--output", required=True, metavar="FILE", help=f"table to write: *{', *'.join(SUFFIXES)}; the page is next to it, as .html")
    add(
        "--top-k",
        type=WholeNumber(1),
        default=32,
        metavar="K",
        help="answers to each query, all of which the reranker scores, 1 or more (default 32)",
    )
    directions = ("image_to_text", "text_to_image", "both")
    add("--direction", choices=directions, default="both", help="which side the queries are of (default both)")
    add(
        "--pages",
        type=WholeNumber(0),
        default=100,
        metavar="N",
        help="queries that the page shows at most, 0 or more; 0: no page (default 100)",
    )
    add("--skip-broken", action="store_true", help="leave out pictures that do not decode (default: refuse them)")
    add("--caption-column", metavar="NAME", help="column of the captions in a table (default: captions, else caption; text or title)")
    add("--caption-id-column", metavar="NAME", help="column of a table that names each caption (default: its line or row number)")
    add("--split", help="of a manifest: only the pictures of this split (default: all)")
    add(
        "--skip-missing",
        action="store_true",
        help="of a manifest: leave out rows whose picture is missing, listed next to OUTPUT (default: refuse them)",
    )
    add_manifest_options(parser, "--images")
    add(
        "--min-precision",
        type=float,
        metavar="P",
        help="leave out answers whose score does not reach this precision, a share from 0 to 1 that was calibrated, e.g. 0.9; a query "
        "left with none has no match (default: all of --top-k are written)",
    )
    add(
        "--calibration",
        metavar="FILE",
        help="calibration.json of this model and reranker (eval --calibrate-on makes one): the table gets a column of probabilities "
        "(default with --min-precision: that of the model's folder; else none)",
    )
    _add_budget(parser)
    add_strip_punctuation(parser)
    add_num_workers(parser)
    return parser


def _add_budget(parser: CommandParser) -> None:
    """Give the command the options on what of the reranking is done, and how."""
    add = parser.add_argument
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="rerank as many answers to each query, up to --top-k, as fit into so many seconds, above 0 (default: all of --top-k)",
    )
    add(
        "--skip-margin",
        type=float,
        metavar="X",
        help="do not score what trails the first of its list by X or more, a difference of cosines, 0 or more (default: score all)",
    )
    add_pair_scores(parser, "next to OUTPUT, in OUTPUT.pair-scores")
    add("--precision", choices=("float32", "bfloat16"), help="of the reranker's towers (default float32)")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if fault := argument_fault(asked):
        parser.error(fault)
    return asked


def argument_fault(asked: argparse.Namespace) -> str:
    """What the arguments alone show to be wrong; empty if nothing."""
    if wrong := column_fault(asked) or score_fault(asked):
        return wrong
    given = [name for name in ("precision", "seconds", "skip_margin", "pair_scores") if getattr(asked, name) is not None]
    if asked.rerank is None and (given or asked.no_pair_scores):
        return f"--{(given or ['no_pair_scores'])[0].replace('_', '-')} is about the reranker: give --rerank too, or leave it out"
    if asked.seconds is not None and not asked.seconds > 0:
        return "--seconds is above 0"
    if asked.skip_margin is not None and not asked.skip_margin >= 0:
        return "--skip-margin is a difference of cosines, 0 or more"
    if asked.min_precision is not None and not 0 < asked.min_precision < 1:
        return f"--min-precision is a share from 0 to 1, e.g. 0.9; found {asked.min_precision:g}"
    if (asked.min_precision is not None or asked.calibration is not None) and asked.skip_margin is not None:
        return "--skip-margin leaves answers without a score, and so without a probability: leave it out, or give no --min-precision"
    if asked.caption_id_column is not None and asked.captions is None:
        return "--caption-id-column is of a table of captions: give --captions too, or leave it out"
    if Path(asked.output).suffix.lower() not in SUFFIXES:
        return f"--output {asked.output}: expected a name that ends in one of {', '.join(SUFFIXES)}"
    return ""


def run(asked: argparse.Namespace, processes: "Processes", device: "torch.device") -> None:
    """Find, rerank and write; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model, reranker, pictures or captions cannot be used, or the files cannot be written.
    """
    from eval.encoder.checkpoint import hash_weights, load_siglip, load_siglip_config
    from eval.errors import Faults, named, reading
    from eval.execution import Execution
    from eval.manifest.names import OPTIONS as MANIFEST_OPTIONS
    from eval.manifest.names import calling
    from eval.process_group import use_exact_float32
    from eval.progress import bar
    from eval.report.texts import text_lines
    from eval.search.ranking import DIRECTIONS
    from rerank.answers.answers import fitting_budget, within_budget
    from rerank.answers.collection import read_collection
    from rerank.answers.first_stage import find_first
    from rerank.answers.matches import Matches
    from rerank.answers.output import check_output, write_output
    from rerank.answers.summary import closing_lines, reading_lines
    from rerank.asked import OPTIONS, asked_store
    from rerank.scorers.load import load_scorer
    from rerank.scorers.scorer import ScorerSettings
    from rerank.scorers.supported import check_cross_encoder

    use_exact_float32()
    names = MANIFEST_OPTIONS | {"source": "--images"}
    output = Path(asked.output)
    directions: Sequence[Direction] = DIRECTIONS if asked.direction == "both" else (asked.direction,)
    with (
        processes.jointly(),
        reading(),
        named(OPTIONS | {"model": "--model", "precision": "--precision"}),
        calling(names),
    ):  # everything that can be refused is refused before the work
        if processes.is_main:
            check_output(output, {"--images": asked.images, "--captions": asked.captions})
        faults = Faults()
        with faults.noting(), named({"model": "--model"}):
            load_siglip_config(asked.model)
        with faults.noting(), reading():
            collection = read_collection(
                asked.images,
                asked.captions,
                image_root=asked.image_root,
                columns=columns_of(asked),
                split=asked.split,
                skip_missing=asked.skip_missing,
                caption_column=asked.caption_column,
                caption_id_column=asked.caption_id_column,
            )
        if asked.rerank is not None and faults.found:
            with faults.noting(), named(OPTIONS):
                check_cross_encoder(asked.rerank)
        faults.tell()
        scorer, cache = None, None
        if asked.rerank is not None:
            settings = ScorerSettings(precision=asked.precision or "float32", score_kind=score_kind(asked))
            scorer = load_scorer(asked.rerank, device=device, settings=settings)
            cache = asked_store(asked, processes, output.with_suffix(".pair-scores"))
        model, inputs = load_siglip(asked.model, strip_punctuation=asked.strip_punctuation)
        weights, matches = hash_weights(model), None
        if asked.min_precision is not None or asked.calibration is not None:
            matches = Matches.read(asked.calibration, asked.model, weights, scorer, asked.min_precision)
            with named({"precision": "--min-precision"}):
                matches.check(directions)
            log(processes, matches.lines(asked.top_k))
    collection.check_shared(processes)
    log(processes, reading_lines(collection, directions, asked.top_k))
    log(processes, [f"texts      {line}" for line in text_lines(collection.text_record(inputs, processes))])
    model.to(device)  # type: ignore[arg-type]  # transformers wraps it
    num_rows = (collection.num_images + collection.num_captions) // processes.world_size
    with bar(num_rows, "embed", "row", show=processes.is_main, leave=False) as shown:
        execution = Execution(processes=processes, device=device, num_workers=asked.num_workers, on_progress=shown.update)
        found = find_first(model, inputs, collection, directions, asked.top_k, skip_broken=asked.skip_broken, execution=execution)
    del model  # the reranker may need the memory
    with processes.jointly():
        if processes.is_main:
            write_broken(found, collection, output)
    if scorer is not None and asked.seconds is not None:
        budget = fitting_budget(found, scorer, asked.seconds, processes)
        log(processes, [f"budget     {budget}"])
        found = within_budget(found, budget)
    execution = Execution(processes=processes, num_workers=asked.num_workers)
    answers, scores = _answers(found, scorer, cache, asked.skip_margin, execution)
    if matches is not None:
        answers = [matches.of(one) for one in answers]
    with processes.jointly():
        if processes.is_main:
            calibrated = {"calibration": matches.path, "min_precision": asked.min_precision} if matches is not None else {}
            made_by = provenance(asked, found, weights, scorer) | calibrated
            page = write_output(output, found, answers, made_by, asked.pages)
            log(processes, closing_lines(found, answers, scores, output, page))


def write_broken(found: "FirstAnswers", collection: "Collection", output: Path) -> None:
    """List the pictures that were left out in OUTPUT.skipped.jsonl, and print the first few.

    Raises:
        WriteError: it cannot be written.
    """
    from eval.errors import writing
    from eval.manifest.skipped import FILE as SKIPPED
    from eval.manifest.skipped import write_skipped
    from rerank.answers.summary import broken_lines

    number, path = {name: image for image, name in enumerate(collection.image_ids)}, output.with_suffix(f".{SKIPPED}")
    skipped = [collection.skipped(number[name]) for name in found.broken]
    with writing(path):
        write_skipped(path, [*collection.pictures.skipped_rows, *skipped])
    for line in broken_lines(skipped, path):
        print(line, flush=True)


def _answers(
    found: "FirstAnswers", scorer: "PairScorer | None", cache: "ScoreCache | None", skip_margin: float | None, execution: "Execution"
) -> "tuple[list[Answers], PairScores | None]":
    """The answers of each direction, reranked where there is a reranker, and the scores it gave."""
    from rerank.answers.answers import Answers, reranked_answers

    if scorer is None:
        return [Answers.of(ranking, None) for ranking in found.rankings.values()], None
    return reranked_answers(found, scorer, skip_margin=skip_margin, cache=cache, execution=execution)


def provenance(asked: argparse.Namespace, found: "FirstAnswers", weights: str, scorer: "PairScorer | None") -> dict[str, Any]:
    """What made the table, as a .parquet file records it."""
    from eval.encoder.hub import revision_in_use
    from eval.manifest.formats.hub import data_revision

    return {
        "images": asked.images,
        "images_revision": data_revision(asked.images),
        "model": asked.model,
        "model_weights_sha256": weights,
        "logit_scale": found.scale,
        "logit_bias": found.bias,
        "model_revision": revision_in_use(asked.model),
        "rerank": asked.rerank,
        "rerank_revision": revision_in_use(asked.rerank) if asked.rerank is not None else None,
        "rerank_score": score_kind(asked) if asked.rerank is not None else None,
        "rerank_fingerprint": scorer.fingerprint if scorer is not None else None,
        "top_k": asked.top_k,
        "seconds": asked.seconds,
        "skip_margin": asked.skip_margin,
        "num_images": found.collection.num_images,
        "num_captions": found.collection.num_captions,
        "num_left_out": len(found.broken),
    }


def log(processes: "Processes", lines: Sequence[str]) -> None:
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
    sys.exit(main(command_line()))

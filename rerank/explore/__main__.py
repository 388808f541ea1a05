"""python -m rerank.explore runs/NAME --images FOLDER --rerank B

A page on this machine to search pictures with: type a sentence or drop a picture, and see what the first stage and a cross-encoder find.
Needs the extra `explore`: pip install -c constraints.txt -e '.[explore]'.
Exit codes: 2 bad arguments or data · 5 not finite · 6 out of memory · 130 ended by Ctrl-C.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from eval.command import run_command
from eval.command_line import CommandParser, WholeNumber, add_num_workers, add_strip_punctuation
from eval.files import command_line
from eval.manifest.options import MANIFEST, add_manifest_options, column_fault, columns_of
from rerank.options import add_reranker, score_fault, score_kind

if TYPE_CHECKING:
    import torch

    from rerank.explore.search import Searcher

DEFAULT_PORT, MOST_PORT = 7860, 65535
_EXAMPLE = "explore runs/demo --images demo/data/scenes.parquet --split test --rerank demo/models/blip-itm"


def make_parser() -> CommandParser:
    """The options."""
    description = "A page on this machine, at 127.0.0.1 alone, to search pictures with a sentence or a picture."
    parser = CommandParser("rerank.explore", description, _EXAMPLE)
    add = parser.add_argument
    add(
        "model",
        metavar="RUN_OR_MODEL",
        help="runs/NAME, of which the export is taken; a SigLIP folder; or OWNER/NAME[@REVISION] of the hub",
    )
    add(
        "--images",
        required=True,
        metavar="FOLDER_OR_MANIFEST",
        help=f"folder of pictures, searched with all folders below it; or a manifest, whose captions are found too: {MANIFEST}",
    )
    add_reranker(parser)
    add("--top-k", type=WholeNumber(1), default=12, metavar="K", help="results, all of which are reranked, 1 or more (default 12)")
    add(
        "--port",
        type=WholeNumber(0),
        default=DEFAULT_PORT,
        help=f"where the page is, 0 to {MOST_PORT}; 0: wherever one is free (default {DEFAULT_PORT})",
    )
    add("--device", help="where models run, such as cpu or cuda:1 (default: a GPU if there is one, else cpu)")
    add("--split", help="of a manifest: only the pictures of this split (default: all)")
    add("--skip-missing", action="store_true", help="of a manifest: leave out rows whose picture is missing (default: refuse them)")
    add_manifest_options(parser, "--images")
    add_strip_punctuation(parser)
    add_num_workers(parser)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if fault := column_fault(asked) or score_fault(asked):
        parser.error(fault)
    if asked.port > MOST_PORT:
        parser.error(f"--port: expected 0 to {MOST_PORT}; found {asked.port}")
    return asked


def device_of(name: str | None) -> "torch.device":
    """The device that --device names.

    Raises:
        UserError: there is none of this name here.
    """
    import torch

    from eval.errors import UserError
    from eval.process_group import launched_device

    if name is None:
        return launched_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's own words differ by device
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--device {name}: cannot be used here ({said}). Leave it out, or give cpu") from error
    return device


def run(asked: argparse.Namespace) -> None:
    """Embed the pictures and serve the page until Ctrl-C.

    Raises:
        UserError: the extra is missing; or model, reranker, pictures, device or port cannot be used.
    """
    from rerank.explore.server import bound, serve, uploads

    with bound(asked.port) as listener:  # before the work
        searcher, about = prepared(asked)
        with uploads():
            from rerank.explore.page import make_page

            serve(make_page(searcher, about), listener)


def prepared(asked: argparse.Namespace) -> "tuple[Searcher, dict[str, str]]":
    """What answers queries, and what the page says of it; everything that can be refused is refused before the work.

    Raises:
        UserError: as `run`.
    """
    from eval.encoder.checkpoint import hash_weights, load_siglip, load_siglip_config
    from eval.encoder.hub import with_revision
    from eval.errors import Faults, named, reading
    from eval.manifest.names import OPTIONS, calling
    from eval.manifest.run_data import exported
    from eval.process_group import use_exact_float32
    from rerank.answers.collection import read_gallery
    from rerank.answers.summary import broken_lines, reading_lines
    from rerank.explore.probability import stage_probabilities
    from rerank.explore.search import Searcher, embed_gallery
    from rerank.explore.server import check_extra
    from rerank.scorers.load import load_scorer
    from rerank.scorers.scorer import ScorerSettings
    from rerank.scorers.supported import check_cross_encoder

    use_exact_float32()
    faults, names = Faults(), {"model": "RUN_OR_MODEL", "reranker": "--rerank"}
    with reading(), named(names), calling(OPTIONS | {"source": "--images"}):
        with faults.noting():
            check_extra()
        with faults.noting():
            device = device_of(asked.device)
        with faults.noting(), named(names):
            name = exported(asked.model)
            load_siglip_config(name)
        with faults.noting(), reading():
            collection = read_gallery(
                asked.images,
                image_root=asked.image_root,
                columns=columns_of(asked),
                split=asked.split,
                skip_missing=asked.skip_missing,
            )
        if asked.rerank is not None and faults.found:
            with faults.noting(), named(names):
                check_cross_encoder(asked.rerank)
        faults.tell()
        scorer = None
        if asked.rerank is not None:
            scorer = load_scorer(asked.rerank, device=device, settings=ScorerSettings(score_kind=score_kind(asked)))
        model, inputs = load_siglip(name, strip_punctuation=asked.strip_punctuation)
        probabilities = stage_probabilities(name, hash_weights(model), scorer.fingerprint if scorer is not None else None)
    for line in reading_lines(collection, (), asked.top_k):
        print(line, flush=True)
    gallery = embed_gallery(model.to(device), inputs, collection, num_workers=asked.num_workers)  # type: ignore[arg-type]  # transformers wraps it
    for line in broken_lines(gallery.broken):
        print(line, flush=True)
    about = {"model": with_revision(name), "reranker": with_revision(asked.rerank) if asked.rerank is not None else ""}
    return Searcher(model, inputs, gallery, top_k=asked.top_k, scorer=scorer, probabilities=probabilities), about


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments)
    return run_command(lambda: run(asked))


if __name__ == "__main__":
    sys.exit(main(command_line()))

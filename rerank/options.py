"""The options of `python -m eval` for reranking and combining. What they ask for is read in rerank/asked.py, which imports much more."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from rerank.combine.rules import COMBINATIONS, COMBINING_CHOICES, POOLINGS, combination_fault

if TYPE_CHECKING:
    from rerank.scorers.scorer import Precision, ScoreKind

DEFAULT_MAX_LOSS = 0.001
DEFAULT_TOP_K = 32
"""Where there are fewer images or captions, all of them."""
CHOICES = (*COMBINING_CHOICES, "fusion", "skipping")
"""What --choose-on can choose."""


def add_reranker(parser: argparse.ArgumentParser) -> None:
    """Give a command --rerank, the cross-encoder, and --score, what it ranks by."""
    parser.add_argument(
        "--rerank",
        metavar="MODEL",
        help="cross-encoder: a folder, or OWNER/NAME[@REVISION] of the hub, e.g. Salesforce/blip-itm-base-coco (default: none)",
    )
    parser.add_argument(
        "--score",
        choices=("match_logit", "margin"),
        help="what the reranker ranks by: the logit of a match, or that less the logit of no match (default match_logit)",
    )


def score_fault(asked: argparse.Namespace) -> str:
    """What is wrong with --score; empty if nothing."""
    return "--score is about the reranker: give --rerank too, or leave it out" if asked.score is not None and asked.rerank is None else ""


def score_kind(asked: argparse.Namespace) -> "ScoreKind":
    """What the reranker ranks by."""
    return asked.score or "match_logit"


def scoring_precision(precision: str | None) -> "Precision":
    """A cross-encoder's setting of a precision by the name it has in a configuration; None: float32."""
    return "bfloat16" if precision == "bf16" else "float32"


def add_reranking(parser: argparse.ArgumentParser) -> None:
    """Give a command the options."""
    add_reranker(parser)
    add = parser.add_argument
    add(
        "--top-k",
        type=int,
        metavar="K",
        help=f"candidates of each query that the reranker scores, 1 or more (default {DEFAULT_TOP_K}, or all where there are fewer)",
    )
    add_pair_scores(parser)
    add(
        "--rerank-precision",
        choices=("fp32", "bf16"),
        help="of the reranker's towers; its head and scores stay float32. bf16 is for a GPU, and moves scores a little: they are cached "
        "apart (default fp32)",
    )
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="rerank as many candidates, up to --top-k, as fit into so many seconds, above 0 (default: all of --top-k)",
    )
    add(
        "--skip-margin",
        type=float,
        metavar="X",
        help="do not score what trails the first of its query by X or more, a difference of cosines, 0 or more (default: score all)",
    )
    add(
        "--choose-on",
        metavar="SPLIT",
        help="split of the same manifest to choose on: weights and rule of --ensemble, how views of --expand are pooled, and with --rerank "
        "additional stages that fuse both scores and skip by a margin (default: nothing is chosen)",
    )
    add(
        "--choose",
        type=lambda text: words(text, lambda word: "" if word in CHOICES else f"expected {', '.join(CHOICES)}; found {word!r}"),
        metavar="WHAT[,WHAT...]",
        help=f"with --choose-on: what is chosen there: {', '.join(CHOICES)} (default: all that there is)",
    )
    add(
        "--calibrate-on",
        metavar="SPLIT",
        help="split of the same manifest on which the scores of --model, alone and reranked, are calibrated: OUTPUT/calibration.json, for "
        "rerank --min-precision (default: none)",
    )
    add(
        "--max-loss",
        type=float,
        metavar="SHARE",
        help=f"with --choose-on: share of the queries, 0 to 1, that the margin may lose there (default {DEFAULT_MAX_LOSS})",
    )


def add_combining(parser: argparse.ArgumentParser) -> None:
    """Give a command the options."""
    parser.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="MODEL[:WEIGHT]",
        help="an additional checkpoint, measured as stage model-2, model-3, ..., and together with --model as stage ensemble; weights are "
        "above 0, that of --model is 1, and they are chosen on --choose-on if none is given, else those left out are 1 (default: none)",
    )
    parser.add_argument(
        "--combine",
        type=lambda text: words(text, combination_fault),
        default=[],
        metavar="RULE[,RULE...]",
        help=f"how members' scores become one: {', '.join(COMBINATIONS)} (default logits); several: the best on --choose-on",
    )
    parser.add_argument(
        "--expand",
        action="append",
        default=[],
        metavar="FILE_OR_METHOD",
        help="an additional stage with additional views of queries or images: FILE of your paraphrases, column:NAME, templates[:FILE], "
        "synonyms:FILE, wordnet[:DIR], paraphrase:MODEL, crops, flips, captions:FILE, captions-column:NAME, see docs/expansion.md "
        "(default: none)",
    )
    parser.add_argument(
        "--pooling",
        type=lambda text: text.split(","),
        default=[],
        metavar="RULE[:NUMBER[:WEIGHT]]",
        help=f"how the views of one item become one score: {', '.join(POOLINGS)} (default mean), of its first NUMBER views, 1 or more "
        "(default all), WEIGHT from 0 to 1 (default 1) against the item alone; with --choose-on RULE[,RULE...], of which the best is "
        "chosen with number and weight (default: all)",
    )
    parser.add_argument(
        "--nnn",
        metavar="SPLIT",
        help="an additional stage model+nnn: nearest-neighbour normalisation, with the captions and images of SPLIT, such as train, as "
        "reference queries; number and weight are chosen on --choose-on, see docs/nnn.md (default: none)",
    )


def check_options(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Refuse options that need another, which is not given; what a plan checks itself is not checked here."""
    if fault := score_fault(asked):
        parser.error(fault)
    chosen = asked.choose or ()
    for option in ("rerank_precision", "seconds", "skip_margin"):
        if getattr(asked, option) is not None and asked.rerank is None:
            parser.error(f"--{option.replace('_', '-')} needs --rerank")
    if asked.choose is not None and asked.choose_on is None:
        parser.error("--choose needs --choose-on, the split to choose on")
    if what := [one for one in ("fusion", "skipping") if one in chosen and asked.rerank is None]:
        parser.error(f"--choose {what[0]} needs --rerank")
    if asked.choose_on is not None and asked.choose_on == asked.split:
        parser.error(f"--choose-on {asked.choose_on} is the split that is measured, where what is chosen looks too good; give another")
    if asked.choose_on is not None and asked.split is None:
        parser.error("--choose-on needs --split, the one to measure on")
    if asked.nnn is not None and asked.choose_on is None:
        parser.error("--nnn needs --choose-on, the split that its number and weight are chosen on")
    if asked.nnn is not None and asked.nnn in (asked.split, asked.choose_on):
        parser.error(f"--nnn {asked.nnn}: the reference queries are of a split that is neither measured nor chosen on, such as train")
    if asked.calibrate_on is not None and asked.split is None:
        parser.error("--calibrate-on needs --split, the one to measure on")
    if asked.calibrate_on is not None and asked.skip_margin is not None:
        parser.error("--calibrate-on calibrates the score of every candidate, and --skip-margin leaves some without: leave one of them out")
    if asked.max_loss is not None and not chooses(asked, "skipping"):
        parser.error("--max-loss is for the margin that --choose-on chooses; give --choose-on (and skipping in --choose), or leave it out")


def chooses(asked: argparse.Namespace, what: str) -> bool:
    """True if --choose-on is to choose this of the reranker."""
    return asked.choose_on is not None and asked.rerank is not None and (asked.choose is None or what in asked.choose)


def words(text: str, fault: Callable[[str], str]) -> list[str]:
    """Words between commas, each once and without a fault; an argument's type."""
    words = [word.strip() for word in text.split(",")]
    for message in filter(None, map(fault, words)):
        raise argparse.ArgumentTypeError(message)
    return list(dict.fromkeys(words))


def add_pair_scores(parser: argparse.ArgumentParser, default: str = "OUTPUT/pair-scores") -> None:
    """Give a command the options that `asked_store` reads; `default` says where the cache is when nothing is given."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--pair-scores",
        metavar="FOLDER",
        help=f"folder of the reranker's score cache, so that no pair is scored twice (default {default})",
    )
    choice.add_argument("--no-pair-scores", action="store_true", help="use no score cache, and score every pair (default: use one)")

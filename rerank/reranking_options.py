"""The options of `python -m eval` that speak of reranking."""

import argparse
from collections.abc import Sequence

from rerank.pair_store import add_pair_scores

DEFAULT_MAX_LOSS = 0.001
CHOICES = ("ensemble", "expansion", "fusion", "skipping")
"""What --choose-on can choose."""


def add_reranking(parser: argparse.ArgumentParser) -> None:
    """Give a command the options."""
    parser.add_argument("--rerank", help="cross-encoder folder or hub id, e.g. Salesforce/blip-itm-base-coco")
    parser.add_argument("--top-k", type=int, default=32, help="candidates per query the reranker scores (default 32)")
    add_pair_scores(parser)
    parser.add_argument("--score", choices=("match_logit", "margin"), default="match_logit", help="what the reranker ranks by")
    parser.add_argument("--seconds", type=float, help="rerank as many candidates, up to --top-k, as fit into so many seconds")
    parser.add_argument(
        "--skip-margin", type=float, metavar="X", help="do not score what trails the first of its query by X or more, in cosine"
    )
    parser.add_argument(
        "--choose-on",
        metavar="SPLIT",
        help="split of the same manifest to choose on: weights and rule of --ensemble, how views of --expand are pooled, and with --rerank "
        "further arms that fuse both scores and skip by a margin",
    )
    parser.add_argument(
        "--choose",
        type=lambda text: words_of(text, CHOICES),
        metavar="WHAT[,WHAT...]",
        help=f"with --choose-on: what is chosen there: {', '.join(CHOICES)} (default: all that there is)",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        help=f"with --choose-on: share of the answers the margin may lose there (default {DEFAULT_MAX_LOSS})",
    )


def check_reranking(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Refuse options of reranking that contradict each other, or have nothing to work on."""
    given = [name for name in ("seconds", "skip_margin") if getattr(asked, name) is not None]
    if asked.choose_on is not None and asked.rerank is None and not (asked.ensemble or asked.expand):
        parser.error("--choose-on needs --rerank, --ensemble or --expand: there is nothing to choose")
    if given and asked.rerank is None:
        parser.error(f"--{given[0].replace('_', '-')} needs --rerank")
    given += ["choose_on"] * (chooses(asked, "fusion") or chooses(asked, "skipping"))
    if given and asked.top_k < 2:
        parser.error(f"--{given[0].replace('_', '-')} needs a --top-k of at least 2")
    if asked.seconds is not None and not asked.seconds > 0:
        parser.error("--seconds is above 0")
    if asked.skip_margin is not None and not asked.skip_margin >= 0:
        parser.error("--skip-margin is a difference of cosines, 0 or more")
    if asked.choose is not None and asked.choose_on is None:
        parser.error("--choose needs --choose-on, the split to choose on")
    for what, option in (("ensemble", "ensemble"), ("expansion", "expand"), ("fusion", "rerank"), ("skipping", "rerank")):
        if what in (asked.choose or ()) and not getattr(asked, option):
            parser.error(f"--choose {what} needs --{option}")
    if (chooses(asked, "fusion") or chooses(asked, "skipping")) and asked.skip_margin is not None:
        parser.error(
            "--choose-on chooses the margin, and fuses what is scored whole: leave out --skip-margin, or --choose ensemble,expansion"
        )
    if asked.choose_on is not None and asked.choose_on == asked.split:
        parser.error(f"--choose-on {asked.choose_on} is the split that is measured, where what is chosen looks too good; give another")
    if asked.choose_on is not None and asked.split is None:
        parser.error("--choose-on needs --split, the one to measure on")
    if asked.max_loss is not None and not chooses(asked, "skipping"):
        parser.error("--max-loss is for the margin that --choose-on chooses; give --choose-on (and skipping in --choose), or leave it out")
    if asked.max_loss is not None and not 0 <= asked.max_loss <= 1:
        parser.error("--max-loss is a share from 0 to 1; 0.001 is a tenth of a point of R@1")


def chooses(asked: argparse.Namespace, what: str) -> bool:
    """True if --choose-on is to choose it, and it is there."""
    option = {"ensemble": "ensemble", "expansion": "expand", "fusion": "rerank", "skipping": "rerank"}[what]
    return asked.choose_on is not None and bool(getattr(asked, option)) and (asked.choose is None or what in asked.choose)


def words_of(text: str, known: Sequence[str]) -> list[str]:
    """Words between commas, each of the known ones; an argument's type."""
    return list(dict.fromkeys(one_of(word.strip(), known) for word in text.split(",")))


def one_of(word: str, known: Sequence[str]) -> str:
    """The word, if it is known; an argument's type."""
    if word not in known:
        raise argparse.ArgumentTypeError(f"expected {', '.join(known)}; found {word!r}")
    return word

"""The options of `python -m eval` that speak of reranking."""

import argparse

from rerank.pair_store import add_pair_scores

DEFAULT_MAX_LOSS = 0.001


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
        "--choose-on", metavar="SPLIT", help="also fuse both scores, and skip by a margin, as is best on this split of the same manifest"
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        help=f"with --choose-on: share of the answers the margin may lose there (default {DEFAULT_MAX_LOSS})",
    )


def check_reranking(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Refuse options of reranking that contradict each other, or have nothing to work on."""
    given = [name for name in ("seconds", "skip_margin", "choose_on") if getattr(asked, name) is not None]
    if given and asked.rerank is None:
        parser.error(f"--{given[0].replace('_', '-')} needs --rerank")
    if given and asked.top_k < 2:
        parser.error(f"--{given[0].replace('_', '-')} needs a --top-k of at least 2")
    if asked.seconds is not None and not asked.seconds > 0:
        parser.error("--seconds is above 0")
    if asked.skip_margin is not None and not asked.skip_margin >= 0:
        parser.error("--skip-margin is a difference of cosines, 0 or more")
    if asked.choose_on is not None and asked.skip_margin is not None:
        parser.error("--choose-on chooses the margin, so leave out --skip-margin")
    if asked.choose_on is not None and asked.choose_on == asked.split:
        parser.error(f"--choose-on {asked.choose_on} is the split that is measured, where what is chosen looks too good; give another")
    if asked.choose_on is not None and asked.split is None:
        parser.error("--choose-on needs --split, the one to measure on")
    if asked.max_loss is not None and asked.choose_on is None:
        parser.error("--max-loss is for the margin that --choose-on chooses; give --choose-on, or leave it out")
    if asked.max_loss is not None and not 0 <= asked.max_loss <= 1:
        parser.error("--max-loss is a share from 0 to 1; 0.001 is a tenth of a point of R@1")

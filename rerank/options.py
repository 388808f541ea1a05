"""The options of `python -m eval` that speak of reranking."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.errors import UserError
from eval.processes import Processes
from rerank.combine.ensemble import parse_member
from rerank.combine.spec import ALL_VIEWS, Combining
from rerank.combine.views import COMBINATIONS, POOLINGS, Pool, combination_fault
from rerank.expansions.parse import read_expansions
from rerank.scoring.score_cache import ScoreCache

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


def add_combining(parser: argparse.ArgumentParser) -> None:
    """Give a command the options."""
    parser.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="DIR_OR_HUB_ID[:WEIGHT]",
        help="a further checkpoint, measured as stage model-2, model-3, ..., and together with --model as stage ensemble; weights, that of "
        "--model being 1, are chosen on --choose-on if none is given; else those left out are 1",
    )
    parser.add_argument(
        "--combine",
        type=_combinations,
        metavar="RULE[,RULE...]",
        help=f"how members' scores become one: {', '.join(COMBINATIONS)} (default logits); several: the best on --choose-on",
    )
    parser.add_argument(
        "--expand",
        action="append",
        default=[],
        metavar="FILE_OR_METHOD",
        help="a further arm with more views of what asks: FILE of your paraphrases, column:NAME, templates[:FILE], synonyms:FILE, "
        "wordnet[:DIR], paraphrase:DIR_OR_HUB_ID, crops, flips, captions:FILE, captions-column:NAME (docs/expansion.md)",
    )
    parser.add_argument(
        "--pooling",
        type=_pools,
        metavar="RULE[:NUMBER[:WEIGHT]]",
        help=f"how the views of one item become one score: {', '.join(POOLINGS)} (default mean), of its first NUMBER views "
        "(default all), WEIGHT in [0, 1] (default 1) against the item alone; with --choose-on RULE[,RULE...], of which the best is "
        "chosen with number and weight (default: all)",
    )


def check_combining(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Refuse options that contradict each other, or have nothing to work on."""
    if asked.combine is not None and not asked.ensemble:
        parser.error("--combine needs --ensemble")
    if asked.pooling is not None and not asked.expand:
        parser.error("--pooling needs --expand")
    given = [":" in member for member in asked.ensemble]
    if any(given) and "ensemble" in (asked.choose or ()):
        parser.error("--choose ensemble: the weights are given, so nothing is left to choose; leave them out")
    if len(asked.combine or ()) > 1 and (any(given) or not chooses(asked, "ensemble")):
        parser.error("--combine with several rules: one is chosen with the weights on --choose-on; give that and no weights, or one rule")
    if asked.choose_on is not None and any(given) and not any(chooses(asked, what) for what in CHOICES if what != "ensemble"):
        parser.error("--choose-on: the weights of --ensemble are given, so nothing is left to choose; leave them out, or --choose-on")
    if asked.pooling is not None:
        plain = [pool for pool in asked.pooling if pool == Pool(pool.pooling, ALL_VIEWS, 1.0)]
        if not chooses(asked, "expansion") and len(asked.pooling) > 1:
            parser.error("--pooling with several rules needs --choose-on, to choose one of them")
        if chooses(asked, "expansion") and len(plain) < len(asked.pooling):
            parser.error("--pooling: number and weight are chosen on --choose-on; leave them out, or leave expansion out of --choose")
        ranks = [pool.pooling == "reciprocal-rank" for pool in asked.pooling]
        if asked.ensemble and all(ranks) and asked.combine != ["reciprocal-rank"]:
            parser.error("--pooling reciprocal-rank makes no score that members' scores could be combined with: --combine reciprocal-rank")


def read_combining(asked: argparse.Namespace) -> tuple[dict[str, str], Combining]:
    """The checkpoints of --ensemble by stage name, and what is made of them and --model.

    Raises:
        UserError: a member or an expansion cannot be read.
    """
    members = [parse_member(text) for text in asked.ensemble]
    checkpoints = {f"model-{number}": path for number, (path, _) in enumerate(members, 2)}
    weights = (1.0, *(weight for _, weight in members)) if any(":" in text for text in asked.ensemble) else None
    rules = {} if asked.pooling is None else {"poolings": tuple(pool.pooling for pool in asked.pooling), "pool": asked.pooling[0]}
    combining = Combining(
        "model",
        ("model", *checkpoints) if members else (),
        weights,
        tuple(asked.combine or ("logits",)),
        read_expansions(asked.expand),
        **rules,
    )
    return checkpoints, combining


def _combinations(text: str) -> list[str]:
    rules = [rule.strip() for rule in text.split(",")]
    for fault in filter(None, map(combination_fault, rules)):
        raise argparse.ArgumentTypeError(fault)
    return list(dict.fromkeys(rules))


def _pools(text: str) -> list[Pool]:
    pools = []
    for part in text.split(","):
        rule, *rest = part.strip().split(":")
        pooling = one_of(rule, POOLINGS)
        try:
            number, weight = int(rest[0]) if rest else ALL_VIEWS, float(rest[1]) if len(rest) > 1 else 1.0
        except ValueError:
            number, weight = 0, 0.0
        if len(rest) > 2 or number < 1 or not 0 < weight <= 1:
            raise argparse.ArgumentTypeError(
                f"expected RULE[:NUMBER[:WEIGHT]], NUMBER from 1, WEIGHT above 0 and at most 1; found {part!r}"
            )
        pools.append(Pool(pooling, number, weight))  # type: ignore[arg-type]  # one of its names
    return pools


def add_pair_scores(parser: argparse.ArgumentParser, default: str = "OUTPUT/pair-scores") -> None:
    """Give a command the options that `asked_store` reads; `default` says where scores are kept when nothing is said."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--pair-scores",
        metavar="FOLDER",
        help=f"where the reranker's scores are kept and read from, so that no pair is scored twice (default: {default})",
    )
    choice.add_argument("--no-pair-scores", action="store_true", help="keep no scores, and score every pair")


def asked_store(asked: argparse.Namespace, processes: Processes, default: Path | None = None) -> ScoreCache | None:
    """The store a command line asks for; None: it asks for none.

    Args:
        default: its folder when nothing is said; None: pair-scores in the folder that --output names.

    Raises:
        UserError: the folder's name is empty, as of a shell variable that is not set: that would be the working directory.
        WriteError: its folder cannot be made.
    """
    if asked.no_pair_scores:
        return None
    if asked.pair_scores == "":
        raise UserError("--pair-scores: expected a folder, found an empty name. Name one, leave it out, or give --no-pair-scores")
    folder = Path(asked.pair_scores) if asked.pair_scores is not None else default or Path(asked.output) / "pair-scores"
    return ScoreCache(folder) if processes.is_main else ScoreCache(folder, log=lambda text: None)

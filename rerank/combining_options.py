"""The options of `python -m eval` that speak of ensembles and expanded queries."""

import argparse

from rerank.combining import ALL_VIEWS, Combining
from rerank.ensemble import parse_member
from rerank.expansion import read_expansions
from rerank.reranking_options import CHOICES, chooses, one_of, words_of
from rerank.views import COMBINATIONS, POOLINGS, Pool


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
    return words_of(text, COMBINATIONS)


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

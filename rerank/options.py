"""The options of `python -m eval` for reranking and combining, and the plan they ask for."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.errors import SettingError, UserError, named
from eval.processes import Processes
from rerank.combine.spec import COMBINING_CHOICES, Choice, Combining, given_weights, parse_member, parse_pool
from rerank.combine.views import COMBINATIONS, POOLINGS, combination_fault
from rerank.evaluation import EvaluationPlan
from rerank.expansions.parse import read_expansions
from rerank.reorder.plan import Plan, Tuning
from rerank.scoring.score_cache import ScoreCache

DEFAULT_MAX_LOSS = 0.001
CHOICES = (*COMBINING_CHOICES, "fusion", "skipping")
"""What --choose-on can choose."""
OPTIONS = {
    "checkpoints": "--also",
    "choose": "--choose",
    "combinations": "--combine",
    "comparisons": "--compare",
    "max_loss": "--max-loss",
    "members": "--ensemble",
    "pools": "--pooling",
    "seconds": "--seconds",
    "skip_margin": "--skip-margin",
    "top_k": "--top-k",
}
"""By which option a setting of a plan is given."""


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
        "additional stages that fuse both scores and skip by a margin",
    )
    parser.add_argument(
        "--choose",
        type=lambda text: _words(text, lambda word: "" if word in CHOICES else f"expected {', '.join(CHOICES)}; found {word!r}"),
        metavar="WHAT[,WHAT...]",
        help=f"with --choose-on: what is chosen there: {', '.join(CHOICES)} (default: all that there is)",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        help=f"with --choose-on: share of the queries the margin may lose there (default {DEFAULT_MAX_LOSS})",
    )


def add_combining(parser: argparse.ArgumentParser) -> None:
    """Give a command the options."""
    parser.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="DIR_OR_HUB_ID[:WEIGHT]",
        help="an additional checkpoint, measured as stage model-2, model-3, ..., and together with --model as stage ensemble; weights, "
        "that of --model being 1, are chosen on --choose-on if none is given; else those left out are 1",
    )
    parser.add_argument(
        "--combine",
        type=lambda text: _words(text, combination_fault),
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
        "synonyms:FILE, wordnet[:DIR], paraphrase:DIR_OR_HUB_ID, crops, flips, captions:FILE, captions-column:NAME (docs/expansion.md)",
    )
    parser.add_argument(
        "--pooling",
        type=lambda text: text.split(","),
        default=[],
        metavar="RULE[:NUMBER[:WEIGHT]]",
        help=f"how the views of one item become one score: {', '.join(POOLINGS)} (default mean), of its first NUMBER views "
        "(default all), WEIGHT in [0, 1] (default 1) against the item alone; with --choose-on RULE[,RULE...], of which the best is "
        "chosen with number and weight (default: all)",
    )


def check_options(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Refuse options that need another, which is not given; what a plan checks itself is not checked here."""
    chosen = asked.choose or ()
    for option in ("seconds", "skip_margin"):
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
    if asked.max_loss is not None and not _chooses(asked, "skipping"):
        parser.error("--max-loss is for the margin that --choose-on chooses; give --choose-on (and skipping in --choose), or leave it out")


def read_plan(asked: argparse.Namespace) -> EvaluationPlan:
    """The evaluation that a command line asks for.

    Raises:
        UserError: naming the option whose value cannot be used.
    """
    with named(OPTIONS):
        members = {f"model-{number}": text for number, text in enumerate(asked.ensemble, 2)}
        others = [(name, path) for name, _, path in (text.partition("=") for text in asked.also)]
        try:
            expansions = read_expansions(asked.expand)
        except UserError as error:
            raise UserError(f"--expand: {error}") from error
        reranking = _reranking(asked)  # checked also where it is not used
        combining = Combining(
            members=tuple(members),
            weights=given_weights(asked.ensemble),
            combinations=tuple(asked.combine),
            expansions=tuple(expansions),
            pools=tuple(parse_pool(text) for text in asked.pooling),
            choose=_combining_choices(asked),
        )
        plan = EvaluationPlan(
            checkpoints=_unique([("model", asked.model), *others, *((name, parse_member(text)[0]) for name, text in members.items())]),
            combining=combining,
            expansions=expansions,
            reranking=reranking if asked.rerank is not None else None,
            comparisons=tuple((stage, against) for stage, _, against in (text.partition(":") for text in asked.compare)) or None,
            strip_punctuation=asked.strip_punctuation,
        )
    if asked.choose_on is not None and not plan.chooses:
        raise UserError(
            "--choose-on: there is nothing to choose; give --rerank, --expand or --ensemble without weights, or leave out --choose-on"
        )
    return plan


def _reranking(asked: argparse.Namespace) -> Plan:
    max_loss = DEFAULT_MAX_LOSS if asked.max_loss is None else asked.max_loss
    tuning = Tuning(fusion=_chooses(asked, "fusion"), max_loss=max_loss if _chooses(asked, "skipping") else None)
    return Plan(top_k=asked.top_k, seconds=asked.seconds, skip_margin=asked.skip_margin, tuning=tuning)


def _unique(checkpoints: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Checkpoint by name; errors as of `read_plan`."""
    names = [name for name, _ in checkpoints]
    if len(set(names)) < len(names):
        raise SettingError(
            "checkpoints",
            f"each checkpoint needs its own name; that of --model is 'model', those of --ensemble are model-2, model-3, ...; found {names}",
        )
    return dict(checkpoints)


def _combining_choices(asked: argparse.Namespace) -> tuple[Choice, ...] | None:
    """What of it `Combining` is to choose; None: all that there is."""
    if asked.choose_on is None:
        return ()
    return None if asked.choose is None else tuple(choice for choice in COMBINING_CHOICES if choice in asked.choose)


def _chooses(asked: argparse.Namespace, what: str) -> bool:
    """True if --choose-on is to choose this of the reranker."""
    return asked.choose_on is not None and asked.rerank is not None and (asked.choose is None or what in asked.choose)


def _words(text: str, fault: Callable[[str], str]) -> list[str]:
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
        help=f"folder of the reranker's score cache, so that no pair is scored twice (default: {default})",
    )
    choice.add_argument("--no-pair-scores", action="store_true", help="use no score cache, and score every pair")


def asked_store(asked: argparse.Namespace, processes: Processes, default: Path | None = None) -> ScoreCache | None:
    """The score cache a command line asks for; None: it asks for none.

    Args:
        default: its folder when none is given; None: pair-scores in the folder that --output names.

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

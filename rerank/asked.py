"""What a command line asks for: the plan of an evaluation, its reranker, its score cache, its data."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from eval.dataset.caption_rule import as_read_by
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.dataset.truth import with_ground_truth
from eval.encoder.inputs import SiglipInputs
from eval.errors import SettingError, UserError, named
from eval.manifest.made_split import FILE, Divide, divide_by_file, where_none
from eval.manifest.manifest import Manifest, RowRules, read_manifest
from eval.manifest.options import columns_of
from eval.processes import Processes
from rerank.combine.rules import COMBINING_CHOICES, Choice
from rerank.combine.spec import Combining, given_weights, parse_member, parse_pool
from rerank.evaluation import EvaluationPlan, Reranker
from rerank.expansions.parse import read_expansions
from rerank.options import DEFAULT_MAX_LOSS, chooses
from rerank.reorder.plan import Plan, Tuning
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from rerank.scoring.score_cache import ScoreCache

OPTIONS = {
    "checkpoints": "--also",
    "choose": "--choose",
    "combinations": "--combine",
    "comparisons": "--compare",
    "max_loss": "--max-loss",
    "members": "--ensemble",
    "pools": "--pooling",
    "reranker": "--rerank",
    "seconds": "--seconds",
    "skip_margin": "--skip-margin",
    "top_k": "--top-k",
}
"""By which option a setting is given."""


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
    tuning = Tuning(fusion=chooses(asked, "fusion"), max_loss=max_loss if chooses(asked, "skipping") else None)
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


def read_data(asked: argparse.Namespace, columns: Sequence[str]) -> Manifest:
    """The manifest, with the columns that the plan needs.

    Raises:
        UserError: with every fault of it.
    """
    return read_manifest(
        asked.data,
        image_root=asked.image_root,
        columns=columns_of(asked),
        require_splits=[split for split in (asked.split, asked.choose_on) if split is not None],
        slice_by=asked.slice_by,
        keep=columns,
        rules=RowRules(skip_missing=asked.skip_missing, divide=_split_file(asked)),
    )


def _split_file(asked: argparse.Namespace) -> Divide | None:
    """Splits of a run: those of --split-file, or for data without splits those of the run whose export --model is."""
    if asked.split_file is not None:
        return divide_by_file(asked.split_file)
    of_run = Path(asked.model).parent / FILE
    return where_none(divide_by_file(of_run)) if asked.split is not None and of_run.is_file() else None


def read_datasets(
    asked: argparse.Namespace, manifest: Manifest, inputs: Sequence[SiglipInputs]
) -> tuple[RetrievalSet, RetrievalSet | None]:
    """The split to measure on, with the ground truth asked for, and the one to choose on, if there is one: by the same rule without qrels.

    Args:
        inputs: of every checkpoint; its tokenizer may decide what one caption is (eval/dataset/caption_rule.py).

    Raises:
        UserError: the split or the qrels cannot be used.
    """
    qrels = read_qrels(asked.qrels) if asked.qrels is not None else None
    wanted = [asked.split] + ([asked.choose_on] if asked.choose_on is not None else [])
    splits = as_read_by(inputs, [load_split(manifest, split) for split in wanted])

    def with_truth(split: RetrievalSet, qrels: Collection[tuple[str, str]] | None = None) -> RetrievalSet:
        protocol, near_duplicates = asked.protocol, asked.near_duplicates
        return with_ground_truth(split, protocol=protocol, near_duplicates=near_duplicates, qrels=qrels, gallery=asked.gallery)

    return with_truth(splits[0], qrels), with_truth(splits[1]) if len(splits) > 1 else None


def read_reranker(
    asked: argparse.Namespace, datasets: Sequence[RetrievalSet], processes: Processes, device: torch.device
) -> Reranker | None:
    """The reranker, if one is asked for.

    Raises:
        UserError: it cannot be used, or --top-k exceeds the gallery of one of the data sets.
    """
    from rerank.reorder.stages import check_top_k

    if asked.rerank is None:
        return None
    for dataset in datasets:
        check_top_k(dataset, asked.top_k)
    scorer = load_scorer(asked.rerank, device=device, settings=ScorerSettings(score_kind=asked.score))
    return Reranker(scorer, asked_store(asked, processes), asked.rerank)

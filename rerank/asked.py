"""What a command line asks for: the plan of an evaluation, its reranker, its score cache, its data."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from eval.dataset.caption_rule import as_read_by
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.dataset.truth import with_ground_truth
from eval.encoder.checkpoint import check_encoder
from eval.encoder.inputs import SiglipInputs
from eval.encoder.runtimes import TowerFiles
from eval.errors import Faults, SettingError, UserError, named, reading
from eval.manifest.made_split import Divide, divide_by_file, where_none
from eval.manifest.manifest import Manifest, RowRules, read_manifest
from eval.manifest.names import column_called
from eval.manifest.options import columns_of
from eval.manifest.run_data import RunData
from eval.processes import Processes
from eval.report.trec import DEFAULT_RUN_DEPTH
from rerank.calibration import Reranker
from rerank.combine.rules import COMBINING_CHOICES, Choice
from rerank.combine.spec import Combining, given_weights, parse_member, parse_pool
from rerank.evaluation import EvaluationPlan
from rerank.expansions.parse import kept_columns, read_expansions
from rerank.options import DEFAULT_MAX_LOSS, DEFAULT_TOP_K, chooses, score_kind, scoring_precision
from rerank.reorder.plan import Plan, Tuning
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from rerank.scorers.supported import check_cross_encoder
from rerank.scoring.score_cache import ScoreCache

OPTIONS = {
    "checkpoints": "--also",
    "choose": "--choose",
    "combinations": "--combine",
    "comparisons": "--compare",
    "max_loss": "--max-loss",
    "members": "--ensemble",
    "nnn": "--nnn",
    "pools": "--pooling",
    "precision": "--rerank-precision",
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
        if asked.calibrate_on is not None and TowerFiles.find(asked.model) is not None:
            raise SettingError("model", "--calibrate-on is of weights, and these are towers of another format: give the export's folder")
        plan = EvaluationPlan(
            checkpoints=_unique([("model", asked.model), *others, *((name, parse_member(text)[0]) for name, text in members.items())]),
            combining=combining,
            expansions=expansions,
            reranking=reranking if asked.rerank is not None else None,
            comparisons=tuple((stage, against) for stage, _, against in (text.partition(":") for text in asked.compare)) or None,
            strip_punctuation=asked.strip_punctuation,
            nnn=asked.nnn is not None,
            trec_depth=(asked.trec_depth or DEFAULT_RUN_DEPTH) if asked.trec else None,
        )
    if asked.choose_on is not None and not plan.chooses:
        raise UserError(
            "--choose-on: there is nothing to choose; give --rerank, --expand, --nnn or --ensemble without weights, or leave it out"
        )
    return plan


def _reranking(asked: argparse.Namespace) -> Plan:
    max_loss = DEFAULT_MAX_LOSS if asked.max_loss is None else asked.max_loss
    tuning = Tuning(fusion=chooses(asked, "fusion"), max_loss=max_loss if chooses(asked, "skipping") else None)
    top_k = DEFAULT_TOP_K if asked.top_k is None else asked.top_k
    return Plan(top_k=top_k, seconds=asked.seconds, skip_margin=asked.skip_margin, tuning=tuning)


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


def with_fitting_top_k(asked: argparse.Namespace, plan: EvaluationPlan, datasets: Sequence[RetrievalSet]) -> tuple[EvaluationPlan, str]:
    """The plan with as many candidates as every data set has, where --top-k was left out, and a line on it; empty: there are enough.

    Raises:
        SettingError: they are too few for what is to be chosen.
    """
    if plan.reranking is None or asked.top_k is not None:
        return plan, ""
    sizes = [(size, noun, one) for one in datasets for size, noun in ((one.num_images, "images"), (one.num_captions, "captions"))]
    size, noun, smallest = min(sizes, key=lambda one: one[0])
    if size >= plan.reranking.top_k:
        return plan, ""
    named_split = smallest.source if smallest.split is None else f"split {smallest.split!r}"
    line = f"top-k     {size} candidates of each query, not the default {plan.reranking.top_k}: {named_split} has {size} {noun}"
    return plan.with_top_k(size), line


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


def read_inputs(asked: argparse.Namespace) -> tuple[EvaluationPlan, Manifest]:
    """The plan and the manifest, every model's files looked at; no weights are read.

    Raises:
        UserError: with all that is wrong with options, models and data, as far as each can be known without the others.
    """
    faults, plan, is_model_there = Faults(), None, False
    with faults.noting():
        plan = read_plan(asked)
    for name, path in (plan.checkpoints if plan is not None else {"model": asked.model}).items():
        is_member = plan is not None and name in plan.combining.members
        with faults.noting(), named({"model": "--model" if name == "model" else "--ensemble" if is_member else "--also"}):
            check_encoder(path)
            is_model_there |= name == "model"
    if asked.rerank is not None:
        with faults.noting(), named(OPTIONS):
            check_cross_encoder(asked.rerank)
    manifest = None
    with faults.noting(), reading():
        columns = kept_columns(plan.expansions.values()) if plan is not None else []
        manifest = read_data(asked, columns, is_model_there=is_model_there)
    if faults.found:
        _note_late_faults(asked, manifest, faults)
    faults.tell()
    assert plan is not None and manifest is not None
    return plan, manifest


def _note_late_faults(asked: argparse.Namespace, manifest: Manifest | None, faults: Faults) -> None:
    """Note what would be refused once the faults found are mended."""
    from rerank.reorder.stages import check_top_k

    if asked.qrels is not None:
        with faults.noting(), reading():
            read_qrels(asked.qrels)
    if manifest is not None and asked.rerank is not None and asked.top_k is not None:
        for split in asked_splits(asked):
            if split in manifest.splits and split != asked.nnn:
                with faults.noting(), named(OPTIONS):
                    check_top_k(load_split(manifest, split), asked.top_k)


def read_data(asked: argparse.Namespace, columns: Sequence[str], *, is_model_there: bool = True) -> Manifest:
    """The manifest, with the columns that the plan needs; where it is what the run read whose export --model is, as the run read it.

    Args:
        is_model_there: else a split that data without splits lack is no fault: it may be one of the run that was meant.

    Raises:
        UserError: with every fault of it.
    """
    run = RunData.of_model(asked.model)
    image_root, columns_read, remarks = _as_run_read(asked, run)
    manifest = read_manifest(
        asked.data,
        image_root=image_root,
        columns=columns_read,
        require_splits=asked_splits(asked),
        slice_by=asked.slice_by,
        keep=columns,
        rules=RowRules(skip_missing=asked.skip_missing, divide=_made_splits(asked, run, is_model_there)),
    )
    manifest.remarks = remarks + manifest.remarks
    return manifest


def asked_splits(asked: argparse.Namespace) -> list[str]:
    """The splits that a command line names, each once."""
    named = (asked.split, asked.choose_on, asked.calibrate_on, asked.nnn)
    return list(dict.fromkeys(split for split in named if split is not None))


def _as_run_read(asked: argparse.Namespace, run: RunData | None) -> tuple[str | None, Mapping[str, str], list[str]]:
    """(image root, columns, a line on what of them is the run's): as given, and what was not given as the run read the same source."""
    image_root, columns = asked.image_root, columns_of(asked)
    own = run.reading(asked.data) if run is not None else None
    if run is None or own is None:
        return image_root, columns, []
    taken = own.columns_beside(columns)
    options = [column_called(ours, theirs) for ours, theirs in taken.items()]
    if image_root is None and own.image_root is not None:
        image_root = own.image_root
        options.append(f"--image-root {image_root}")
    return image_root, {**columns, **taken}, [f"data      read as {run.folder} read it: {' '.join(options)}"] if options else []


def _made_splits(asked: argparse.Namespace, run: RunData | None, is_model_there: bool) -> Divide | None:
    """Splits of a run: those of --split-file, or for data without splits those of the run whose export --model is."""
    if asked.split_file is not None:
        return divide_by_file(asked.split_file, RunData.of_folder(Path(asked.split_file).parent).rule)
    if asked.split is not None and run is not None and run.split_file is not None:
        return where_none(divide_by_file(run.split_file, run.rule))
    return None if is_model_there else lambda manifest: []


def read_datasets(
    asked: argparse.Namespace, manifest: Manifest, inputs: Sequence[SiglipInputs]
) -> tuple[RetrievalSet, RetrievalSet | None, RetrievalSet | None]:
    """The split to measure on, with the ground truth asked for, and those to choose and to calibrate on, if there are: by the same rule
    without qrels, each split once.

    Args:
        inputs: of every checkpoint; its tokenizer may decide what one caption is (eval/dataset/caption_rule.py).

    Raises:
        UserError: the split or the qrels cannot be used.
    """
    qrels = read_qrels(asked.qrels) if asked.qrels is not None else None
    names = list(dict.fromkeys([asked.split, *(split for split in (asked.choose_on, asked.calibrate_on) if split is not None)]))
    splits = as_read_by(inputs, [load_split(manifest, split) for split in names])

    def with_truth(split: RetrievalSet, qrels: Collection[tuple[str, str]] | None = None) -> RetrievalSet:
        protocol, near_duplicates = asked.protocol, asked.near_duplicates
        return with_ground_truth(split, protocol=protocol, near_duplicates=near_duplicates, qrels=qrels, gallery=asked.gallery)

    found: dict[str | None, RetrievalSet] = dict(zip(names, [with_truth(splits[0], qrels), *map(with_truth, splits[1:])], strict=True))
    choose_on, calibrate_on = (found[split] if split is not None else None for split in (asked.choose_on, asked.calibrate_on))
    return found[asked.split], choose_on, calibrate_on


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
    for dataset in datasets if asked.top_k is not None else ():
        check_top_k(dataset, asked.top_k)
    kind = score_kind(asked)
    settings = ScorerSettings(score_kind=kind, precision=scoring_precision(asked.rerank_precision))
    with named(OPTIONS):
        scorer = load_scorer(asked.rerank, device=device, settings=settings)
    return Reranker(scorer, asked_store(asked, processes), asked.rerank, kind)

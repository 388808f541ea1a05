"""The final evaluation of a job: what is measured, under which names, and what is compared."""

from collections.abc import Collection

from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import with_ground_truth
from eval.encoder.checkpoint import check_encoder
from eval.errors import UserError, named
from rerank.combine.spec import parse_member
from rerank.evaluation import EvaluationPlan
from rerank.expansions.parse import read_expansions
from train.config.evaluation import BASELINE, KEYS, SUBJECT, EvaluationConfig
from train.config.job import JobConfig


def evaluation_plan(config: JobConfig, base: str = "", export: str = "") -> EvaluationPlan:
    """What the final report measures: base and tuned first, members of the ensemble last.

    Args:
        base, export: the checkpoints of the job's own stages, where they are known.

    Raises:
        UserError: a key cannot be used, or a file that it names cannot be read.
    """
    asked = config.evaluation
    try:
        expansions = read_expansions(asked.expand)
    except UserError as error:
        raise UserError(f"evaluation.expand: {error}") from error
    with named(KEYS):
        members = asked.ensemble.members if asked.ensemble is not None else {}
        return EvaluationPlan(
            checkpoints={BASELINE: base, SUBJECT: export, **asked.models} | {name: parse_member(text)[0] for name, text in members.items()},
            combining=asked.combining(list(expansions)),
            expansions=expansions,
            reranking=config.rerank.plan if config.rerank is not None else None,
            comparisons=tuple(asked.comparisons) if asked.comparisons is not None else None,
            subject=SUBJECT,
            baseline=BASELINE,
            strip_punctuation=config.model.strip_punctuation,
            nnn=asked.nnn,
            trec_depth=asked.trec_depth if asked.trec else None,
        )


def check_plan(plan: EvaluationPlan, scorer_name: str | None) -> None:
    """Refuse now what would be refused at the very end.

    Raises:
        UserError: an additional checkpoint is not there, or a comparison names no stage.
    """
    with named(KEYS):
        plan.pairs(scorer_name)
    for name, checkpoint in plan.checkpoints.items():
        key = "evaluation.ensemble.members" if name in plan.combining.members else "evaluation.models"
        with named({"model": f"{key}.{name}"}):
            if name not in (BASELINE, SUBJECT):
                check_encoder(checkpoint)


def as_evaluated(split: RetrievalSet, asked: EvaluationConfig, qrels: Collection[tuple[str, str]] | None = None) -> RetrievalSet:
    """A split with the relevant items and the gallery that a final evaluation asks for; errors as of `with_ground_truth`."""
    return with_ground_truth(split, protocol=asked.protocol, near_duplicates=asked.near_duplicates, qrels=qrels, gallery=asked.gallery)

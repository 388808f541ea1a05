"""The arms of a job's final report: which checkpoints are measured, under which names, and which are compared."""

from dataclasses import replace

from eval.errors import UserError
from eval.metrics.checks import pair_faults
from rerank.combine.ensemble import parse_member
from rerank.combine.spec import Combining
from rerank.expansions.parse import read_expansions
from rerank.reorder.tuned_stages import Asked
from train.config.job import JobConfig

OWN_STAGES = ("base", "tuned")
CHOSEN_FOR = "tuned"  # whose reranked stage has arms that are chosen on val


def checkpoints(config: JobConfig, base: str, export: str) -> dict[str, str]:
    """Name -> folder or hub id of every checkpoint the report measures: base and tuned first, members of the ensemble last."""
    ensemble = config.evaluation.ensemble
    members = {name: _member(text)[0] for name, text in ensemble.members.items()} if ensemble is not None else {}
    return {"base": base, "tuned": export, **config.evaluation.models, **members}


def combining(config: JobConfig) -> Combining:
    """What is made of the checkpoints beside measuring each alone.

    Raises:
        UserError: a member or an expansion cannot be read.
    """
    asked = config.evaluation
    try:
        expansions = read_expansions(asked.expand)
    except UserError as error:
        raise UserError(f"evaluation.expand: {str(error).removeprefix('--expand ')}") from error
    expanded = Combining(CHOSEN_FOR, expansions=expansions, poolings=tuple(asked.pooling))
    if asked.ensemble is None:
        return expanded
    given = (1.0, *(_member(text)[1] for text in asked.ensemble.members.values()))
    return replace(
        expanded,
        members=(CHOSEN_FOR, *asked.ensemble.members),
        weights=None if asked.ensemble.chooses else given,
        combinations=tuple(asked.ensemble.combine),
    )


def _member(text: str) -> tuple[str, float]:
    try:
        return parse_member(text)
    except UserError as error:
        raise UserError(f"evaluation.ensemble: {str(error).removeprefix('--ensemble ')}") from error


def chosen_stages_asked(config: JobConfig) -> Asked:
    """The arms beside tuned+RERANKER that are chosen on val."""
    rerank = config.rerank
    if rerank is None:
        return Asked(fusion=False, max_loss=None)
    return Asked(fusion=rerank.fusion, max_loss=rerank.adaptive_max_loss if rerank.adaptive else None)


def comparisons(config: JobConfig, scorer_name: str | None) -> list[tuple[str, str]]:
    """(stage, against) pairs: those of evaluation.comparisons, else what each step of the job gained."""
    if config.evaluation.comparisons is not None:
        return list(config.evaluation.comparisons)
    combined = combining(config)
    names = [*checkpoints(config, "", ""), *combined.names]
    pairs = [(name, "base") for name in checkpoints(config, "", "") if name != "base"] + combined.pairs
    if scorer_name is not None:
        pairs += [(f"{name}+{scorer_name}", name) for name in names]
        pairs.append((f"tuned+{scorer_name}", f"base+{scorer_name}"))
        pairs += chosen_stages_asked(config).pairs(f"{CHOSEN_FOR}+{scorer_name}")
    return pairs


def check_comparisons(config: JobConfig, scorer_name: str | None) -> None:
    """Refuse to compare what will not be measured, or a stage with itself, or two twice.

    Raises:
        UserError: naming the stages there will be.
    """
    names = [*checkpoints(config, "", ""), *combining(config).names]
    known = names + ([f"{name}+{scorer_name}" for name in names] if scorer_name is not None else [])
    known += chosen_stages_asked(config).names(f"{CHOSEN_FOR}+{scorer_name}")
    if faults := pair_faults(comparisons(config, scorer_name), known):
        raise UserError(f"evaluation.comparisons: {'; '.join(faults)}")

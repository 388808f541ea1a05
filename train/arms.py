"""The arms of a job's final report: which checkpoints are measured, under which names, and which are compared."""

from eval.errors import UserError
from eval.stage_faults import pair_faults
from train.config import JobConfig


def checkpoints(config: JobConfig, base: str, export: str) -> dict[str, str]:
    """Name -> folder or hub id of every checkpoint the report measures: base and tuned first."""
    return {"base": base, "tuned": export, **config.evaluation.models}


def comparisons(config: JobConfig, scorer_name: str | None) -> list[tuple[str, str]]:
    """(stage, against) pairs: those of evaluation.comparisons, else what each step of the job gained."""
    if config.evaluation.comparisons is not None:
        return list(config.evaluation.comparisons)
    names = list(checkpoints(config, "", ""))
    pairs = [(name, "base") for name in names[1:]]
    if scorer_name is not None:
        pairs += [(f"{name}+{scorer_name}", name) for name in names]
        pairs.append((f"tuned+{scorer_name}", f"base+{scorer_name}"))
    return pairs


def check_comparisons(config: JobConfig, scorer_name: str | None) -> None:
    """Refuse to compare what will not be measured, or a stage with itself, or two twice.

    Raises:
        UserError: naming the stages there will be.
    """
    names = list(checkpoints(config, "", ""))
    known = names + ([f"{name}+{scorer_name}" for name in names] if scorer_name is not None else [])
    if faults := pair_faults(comparisons(config, scorer_name), known):
        raise UserError(f"evaluation.comparisons: {'; '.join(faults)}")

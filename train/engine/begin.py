"""Begin a run at another's checkpoint: its weights and its optimizer state; configuration and count of steps are the new run's own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.encoder.identity import differences
from eval.encoder.sealed import verify
from eval.errors import UserError
from train.config.load import read_run_as
from train.engine.checkpoint import Checkpoints
from train.engine.folder import base_of
from train.engine.metrics_log import flatten

if TYPE_CHECKING:
    from train.config.run import RunConfig
    from train.engine.checkpoint import State
    from train.engine.run import Run

_FREE = {"base", "gradient_checkpointing", "cache_frozen"}
"""Keys of the section model that may differ: the base is known by its weights, the others change no weight."""


def begin_at(job: Run, place: str, state: State) -> State:
    """Take weights and optimizer state from a checkpoint; the state before step 1. Call on every process.

    Args:
        place: its folder, as the main process sees it.
        state: that of a new run.

    Raises:
        UserError: no whole checkpoint is there, or it is of another base, of other data, or of another model.
        NotFinite: a weight of it is not finite.
    """
    source = Path(place)
    num_updates = int(job.processes.from_main(lambda: _num_updates(job.config, source, state)))
    brought, step = job.shared.bring(source), _step(source)

    def load() -> None:
        checkpoints = Checkpoints(brought.parent)
        checkpoints.load_weights(step, job.tuned)
        checkpoints.load_optimizer(step, job.tuned, job.optimizer)

    job.processes.together(load)
    job.shared.drop(brought)
    job.log(f"begins at {source}: its weights and its optimizer state of {num_updates} update(s); the steps are counted from 1")
    return replace(state, num_updates_before=num_updates)


def _step(source: Path) -> int:
    found = re.fullmatch(r"step-(\d+)", source.name)
    if found is None or source.parent.name != "checkpoints":
        raise UserError(f"train.begin_at: expected the folder of a checkpoint, runs/NAME/checkpoints/step-N; found {source}")
    return int(found[1])


def _num_updates(config: RunConfig, source: Path, state: State) -> int:
    """Updates of a checkpoint that can be begun at.

    Raises:
        UserError: it cannot.
    """
    step, checkpoints = _step(source), Checkpoints(source.parent)
    if step not in checkpoints.steps():
        raise UserError(f"train.begin_at: {source} is not there; the checkpoints there are of the steps {checkpoints.steps()}")
    if fault := verify(source):
        raise UserError(f"train.begin_at: {source} is damaged: {fault}; take another of the steps {checkpoints.steps()}")
    try:
        old = read_run_as(type(config), source.parents[1])
    except UserError as error:
        raise UserError(f"train.begin_at: the configuration of that run is needed, which must be of the same kind: {error}") from error
    models = [flatten(one.model_dump(mode="json", include={"model"}, exclude={"model": _FREE}), ".") for one in (old, config)]
    differing = [key for key in dict.fromkeys([*models[0], *models[1]]) if models[0].get(key) != models[1].get(key)]
    if differing:
        lines = "\n  ".join(f"{key}: {models[0].get(key)!r} -> {models[1].get(key)!r}" for key in differing)
        raise UserError(f"train.begin_at: {source} is a checkpoint of another model:\n  {lines}")
    begun = checkpoints.state(step)
    for what, before, now in (("base", begun.base_sha256, state.base_sha256), ("data", begun.data_sha256, state.data_sha256)):
        if before != now:
            raise UserError(
                f"train.begin_at: {source} was trained on {'another' if what == 'base' else 'other'} {what} than this configuration names: "
                f"{before[:16]} -> {now[:16]}. To go on from its weights alone, take an export: {base_of(source.parents[1])}"
            )
    known = begun.base_identity is not None and state.base_identity is not None  # not of a checkpoint of an earlier version
    if known and (found := differences(begun.base_identity or {}, state.base_identity or {})):
        raise UserError(f"train.begin_at: {source} was trained on another base than this configuration names: {'; '.join(found)}")
    return begun.num_updates

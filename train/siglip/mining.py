"""One refresh of a job's negatives: mine in the form asked for, and write the table and its report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.execution import Execution
from rerank.scoring.score_cache import ScoreCache
from train.data.cached_embeddings import NOTHING_FROZEN, FrozenEmbeddings
from train.data.mined_order import images_due
from train.data.negatives import Negatives, write_negatives
from train.mining.candidates import Retriever
from train.mining.cross_encoder import MiningCrossEncoder, load_mining_cross_encoder
from train.mining.mine import mine
from train.mining.refresh import Refresh
from train.mining.report_page import write_mining_report
from train.model.frozen_tower import FrozenStore

if TYPE_CHECKING:
    from train.mining.report import MiningReport
    from train.siglip.job import Job


@dataclass(frozen=True)
class Refreshed:
    """What a refresh gave.

    Attributes:
        path: the table's file; the report lies beside it, as .json and .html.
    """

    negatives: Negatives
    report: MiningReport
    path: Path


def num_rows(job: Job, step: int) -> int:
    """Images and captions that a refresh after `step` steps embeds, over all processes."""
    assert job.config.mining is not None
    images_I = images_due(job.config.mining, job.order, step, job.config.train.max_steps)
    return (job.train_set.num_images if images_I is None else len(images_I)) + len(job.pool)


def refresh_negatives(
    job: Job,
    step: int,
    before: Negatives | None,
    on_progress: Callable[[int], Any],
    frozen: FrozenEmbeddings = NOTHING_FROZEN,
    *,
    is_trained: bool = True,
) -> Refreshed:
    """Mine with the weights after `step` steps; the main process writes runs/NAME/negatives/HASH.parquet and HASH.json, HASH.html.

    Args:
        before: the table that this one replaces.
        on_progress: called with the number of rows embedded on this process.
        frozen: cached embeddings of frozen towers, which are not run again.
        is_trained: the weights are those after `step` steps; else the base's, and the page says so.

    Raises:
        UserError: an embedding or a score of the cross-encoder is not finite.
        OSError: embeddings, table or report cannot be written.
    """
    config, mining = job.config, job.config.mining
    assert mining is not None
    # The run's own, not the runs': what other runs have scored would decide which captions meet in a batch, and so the last bits.
    scorer = load_mining_cross_encoder(config, job.accelerator.device)
    execution, cross_encoder = job.mining(on_progress), None
    if scorer is not None:
        cached = job.processes.together(lambda: ScoreCache(job.folder / "pair-scores", job.log))
        cross_encoder = MiningCrossEncoder(scorer, job.pool, cache=cached, execution=execution)
    if images_due(mining, job.order, step, config.train.max_steps) is None and (step == 0 or not is_trained):
        frozen, execution = _with_base_rows(job, frozen, execution)
    shutil.rmtree(_base_folder(job), ignore_errors=True)  # also what a kill left of it
    negatives, report = mine(
        Retriever(job.tuned.siglip, job.tuned.inputs, frozen),
        job.pool,
        mining,
        refresh=Refresh(config.seed, step, images_due(mining, job.order, step, config.train.max_steps), before),
        cross_encoder=cross_encoder,
        folder=job.folder / "negatives",
        truth=job.truth,
        execution=execution,
    )
    path = job.folder / "negatives" / f"{negatives.name}.parquet"
    with job.processes.jointly():
        if job.processes.is_main:
            write_negatives(path, negatives, job.pool)
            write_mining_report(path.parent, report, negatives, job.pool, job.truth, step=step if is_trained else 0)
    return Refreshed(negatives, report, path)


def _with_base_rows(job: Job, frozen: FrozenEmbeddings, execution: Execution) -> tuple[FrozenEmbeddings, Execution]:
    """The embeddings of both towers before the first step, which other runs of the same base and data mine with too, from the machine's
    cache of embeddings; and how to mine with them. Without the cache, or room in it, towers run as in any mining.

    Raises:
        UserError: an embedding is not finite.
        WriteError: they cannot be written.
    """
    store = FrozenStore(_base_folder(job), job.tuned, job.pool, job.processes)
    if not store.is_cached(execution):
        return frozen, execution
    images = frozen.images or store.rows("image", execution)
    captions = frozen.captions or store.rows("text", execution)
    job.processes.barrier()  # every process has opened them, and reads them without their names
    return FrozenEmbeddings(images, captions), replace(execution, on_progress=lambda rows: execution.on_progress(0))  # heard of already


def _base_folder(job: Job) -> Path:
    """Where the base's embeddings lie until they are opened."""
    return job.folder / "negatives" / "base"

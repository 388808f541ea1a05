"""The loop that tunes SigLIP: what a step, a mining and an evaluation are. When each is due, checkpoints and resume:
train/engine/loop.py."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eval.errors import UserError
from eval.metrics.evaluate import values_of
from eval.metrics.stage_metrics import mean_recall_at_1
from eval.search.ranking import DIRECTIONS
from eval.search.retrieve import retrieve
from eval.signals import StopSignals
from train.data.batches import Batch, BatchBuilder, Parts, TruePairs
from train.data.cached_embeddings import NOTHING_FROZEN, FrozenEmbeddings
from train.data.mined_order import Order, columns_in_force, is_due, order_in_force
from train.data.negatives import Negatives, read_negatives
from train.engine.checkpoint import Checkpoints
from train.engine.loop import BaseLoop
from train.engine.run import Evaluation, Event
from train.mining.report_page import SAMPLE_COLUMNS, sample_rows
from train.model.frozen_tower import FrozenStore, cached_towers
from train.siglip.job import Job
from train.siglip.largest import largest_batch
from train.siglip.mining import num_rows, refresh_negatives
from train.siglip.mining_effect import few_mined_of
from train.siglip.step import Stepper, StepResult
from train.siglip.watch import RetentionResult, Watch

if TYPE_CHECKING:
    from eval.dataset.retrieval_set import RetrievalSet


class Loop(BaseLoop):
    """One run of a job from its current step to its last."""

    def __init__(self, job: Job, signals: StopSignals) -> None:
        self.job, self.config = job, job.config
        self.negatives: Negatives | None = None
        self.columns: Negatives | None = None
        self.frozen = NOTHING_FROZEN
        self.order: Order = order_in_force(job.config.mining, job.order, job.train_set, None, None, job.config.train.max_steps)
        self.stepper: Stepper
        stepper = Stepper(job.config, job.tuned, job.optimizer, job.train_set, job.processes, job.accelerator.autocast)
        stepper.true_pairs = self._true_pairs()
        at_base = job.config.train.begin_at is None
        self.watch = Watch(job.splits.watch, job.base, job.evaluating(), starts_at_base=at_base)
        super().__init__(job, signals, stepper)
        self.state = replace(self.state, matcher_sha256=job.cross_encoder_sha256)

    def setup(self) -> None:
        """Embed once with the frozen towers."""
        self.frozen = self._freeze()

    def restore_extra(self, checkpoints: Checkpoints) -> None:
        """Restore the negatives of the checkpoint the state came from; refuse another cross-encoder than it had."""
        job, step = self.job, self.state.step
        if self.state.matcher_sha256 not in (None, job.cross_encoder_sha256):
            raise UserError(
                f"mining asks {self.config.cross_encoder_model}, another cross-encoder than when {job.folder} was begun: give "
                "it the one it began with (mining.denoise.model, mining.distil.model or rerank.model), or give the run another name="
            )
        if self.state.negatives is not None:
            self.extra_file = self.checkpoints.path(step) / "negatives.parquet"
            self._use(read_negatives(checkpoints.path(step) / "negatives.parquet", self.state.negatives, job.pool))

    def _freeze(self) -> FrozenEmbeddings:
        """The cached embeddings of the frozen towers."""
        job, found = self.job, {}
        store = FrozenStore(job.folder / "frozen", job.tuned, job.pool, job.processes)
        for tower in cached_towers(self.config):
            num_rows = job.train_set.num_images if tower == "image" else len(job.pool)
            with self.side_bar(f"embedding ({tower}, once)", num_rows) as progress:
                found[tower] = store.rows(tower, job.execution(progress))
        if "image" in found and (unknown := found["image"].unknown()):
            first = ", ".join(job.train_set.image_ids[image] for image in unknown[:5])
            job.log(
                f"warning: {len(unknown):,} picture(s) did not decode and are replaced in training, e.g. {first}; --check-images says why"
            )
        return FrozenEmbeddings(found.get("image"), found.get("text"))

    def step_record(self, outcome: StepResult) -> tuple[dict[str, Any], list[Event]]:
        """The terms of the loss, how the batch was composed, scale and bias; no events."""
        terms = {"loss_in_batch": outcome.loss_in_batch, "loss_mined": outcome.loss_mined, "num_mined": outcome.num_mined}
        after = {"logit_scale": outcome.logit_scale, "logit_bias": outcome.logit_bias}
        return terms | self.order.step_record(self.state.step) | after, []

    def batches(self) -> tuple[BatchBuilder, int]:
        """What builds batches, and the step of the next mining: a worker must not look past it."""
        stop = self.config.train.max_steps
        if self.config.mining is not None:
            stop = next((step for step in range(self.state.step + 1, stop) if self._mining_due_at(step)), stop)
        builder = BatchBuilder(
            self.job.pool,
            self.job.tuned.inputs,
            self.order,
            self.job.processes,
            parts=Parts(
                self.config.train.captions_per_image,
                self.config.train.random_crop_min_area,
                self.config.data.jpeg_at_scale,
                self.job.pixels,
            ),
            negatives=self.columns,
            frozen=self.frozen,
        )
        return builder, stop

    def _mining_due_at(self, step: int) -> bool:
        """Whether negatives are mined with the weights after `step` steps."""
        mining = self.config.mining
        return mining is not None and is_due(mining, self.job.order, step)

    def num_refreshes(self) -> int:
        """As `BaseLoop`."""
        return sum(self._mining_due_at(step) for step in range(self.config.train.max_steps))

    def before_step(self) -> None:
        """Refresh the negatives, if that is due."""
        if self.config.mining is None or not self._mining_due_at(self.state.step) or self.state.mined_at_step == self.state.step:
            return
        self._batches = None  # those that were made ahead follow from the table that is replaced
        job = self.job
        started = time.perf_counter()
        with self.side_bar("mining", num_rows(job, self.state.step)) as progress:
            found = refresh_negatives(job, self.state.step, self.negatives, progress, self.frozen)
        self.state = replace(self.state, mined_at_step=self.state.step, negatives=found.negatives.name)
        self._use(found.negatives)
        self.extra_file = found.path
        composed = self.order.window_record()
        self.write("mining", found.report.as_record() | composed | {"seconds": time.perf_counter() - started})
        if self.trackers is not None and self.config.trackers:
            self.trackers.table("mining/hardest", SAMPLE_COLUMNS, sample_rows(found.negatives, job.pool), self.state.step)
        job.log(f"step {self.state.step}: {found.report}; {found.path.with_suffix('.html')}")
        if few := few_mined_of(self.config.mining, found.report):
            job.log(f"warning: {few}")

    def _true_pairs(self) -> TruePairs:
        mining = self.config.mining
        return TruePairs(self.job.pool, self.negatives, near_duplicates=mining is not None and mining.near_duplicates)

    def _use(self, negatives: Negatives) -> None:
        """Put a table in force: its captions become columns, or batches are composed of it; its relabelled pairs become positives."""
        self.negatives, self.columns = negatives, columns_in_force(self.config.mining, negatives)
        self.order = order_in_force(
            self.config.mining, self.job.order, self.job.train_set, negatives, self.state.mined_at_step, self.config.train.max_steps
        )
        self.stepper.true_pairs = self._true_pairs()

    def largest_batch(self) -> Batch:
        """This process's share of a step with as many mined captions of each image as there can be."""
        return largest_batch(self.job)

    def evaluate(self) -> Evaluation:
        """Measure val and the retention sets, which may bar the step from being best or end the run."""
        job, line, results = self.job, None, list[RetentionResult]()
        if job.val_set is not None:
            line = self._measure_val(job.val_set)
        if job.splits.watch:
            with self.side_bar("watching", self.watch.num_rows) as progress:
                results = self.watch.evaluate(self.state.step, job.tuned.siglip, job.tuned.inputs, progress)
        return Evaluation(
            line=line,
            barred=[result.config.name for result in results if result.bars],
            stopped_by=next((result.config.name for result in results if result.stops), None),
            events=[("watch", result.as_record(), f"step {self.state.step}: {result}") for result in results],
        )

    def _measure_val(self, val: RetrievalSet) -> dict[str, Any]:
        """What the line of an evaluation holds on val."""
        with self.side_bar("evaluating", val.num_images + val.num_captions) as progress:
            job, step = self.job, self.state.step
            execution, is_base = job.evaluating(progress), step == 0  # whose embeddings other runs ask for too
            stage = retrieve(f"step {step}", job.tuned.siglip, job.tuned.inputs, val, execution=execution, cached=is_base)
        values = values_of(val, stage)
        return {
            "split": val.split,
            **{direction: values[direction] for direction in DIRECTIONS},
            "mean_R@1": mean_recall_at_1(values),
            "seconds": stage.cost["seconds"],
        }

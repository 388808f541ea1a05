"""The loop: mine, step, evaluate, checkpoint; what happens at a step follows from its number, so a resumed run is the straight one.

Order at step s: take step s; evaluate if it is due; write a checkpoint if one is due; before step s + 1, mine if that is due.
A checkpoint is committed before step 1.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from eval.dataset import RetrievalSet
from eval.encoder import pictures_loader
from eval.errors import UserError
from eval.evaluator import values_of
from eval.first_stage import retrieve
from eval.images import ImageError
from eval.progress import bar
from eval.ranking import DIRECTIONS
from train.agreement import newest_of_main
from train.batches import Batch, BatchBuilder, Order
from train.checkpoint import Checkpoints, State
from train.composition import columns_in_force, order_in_force
from train.frozen import NOTHING_FROZEN, FrozenEmbeddings, FrozenStore, cached_towers
from train.job import Job, describe
from train.mining_schedule import is_due
from train.negatives import Negatives, read_negatives
from train.refreshing import num_rows, refresh_negatives
from train.side_bar import SideBar
from train.step import Stepper
from train.step_record import step_record
from train.stopping import Stopped, StopSignals
from train.tracking import MetricsLog, WandbMirror
from train.true_pairs import TruePairs
from train.watch import Sighting, Watch


class Loop:
    """One run of a job from where it stands to its last step."""

    def __init__(self, job: Job, signals: StopSignals) -> None:
        self.job, self.config, self.signals = job, job.config, signals
        self.checkpoints = Checkpoints(job.folder / "checkpoints")
        self.log = MetricsLog(job.folder)
        self.wandb: WandbMirror | None = None
        self.negatives: Negatives | None = None
        self.negatives_file: Path | None = None
        self.frozen = NOTHING_FROZEN
        self.order: Order = order_in_force(job.config.mining, job.order, job.train_set, None, None, job.config.train.max_steps)
        self.stepper = Stepper(job.config, job.tuned, job.optimizer, job.train_set, job.processes, job.autocast)
        self.stepper.true_pairs = self._true_pairs()
        self.watch = Watch(job.watch_sets, job.base, job.processes, job.config.data.num_workers)
        start = State(0, 0, False, None, None, None, None, 0, job.tuned.base_sha256, job.data_sha256)
        self.state = replace(start, loss_scale=self.stepper.loss_scale, matcher_sha256=job.matcher_sha256)
        self._bar: Any = None
        self._batches: Iterator[Batch | ImageError] | None = None
        self._last_eval = ""

    def run(self) -> State:
        """Go on from the newest checkpoint, or start, to the last step, or to where a watch set ends it.

        Raises:
            Stopped: a signal asked for it; a checkpoint was written.
            NotFinite, NoReadableCheckpoint, UserError, OSError: see train/__main__.py for their exit codes.
        """
        self._start()
        self.wandb = WandbMirror(self.config, self.job.say) if self.job.processes.is_main else None
        self._bar = bar(self.config.train.max_steps, self.config.name, "step", show=self.job.processes.is_main, initial=self.state.step)
        try:
            self._save(sync=True)
            self.frozen = NOTHING_FROZEN if self._ends_here() else self._freeze()
            while True:
                self._evaluate_if_due()
                if self._checkpoint_due():
                    self._save()
                if self._ends_here():
                    return self.state
                self._mine_if_due()
                self._step()
        finally:
            self._bar.close()
            self.log.close()
            if self.wandb is not None:
                self.wandb.close()

    # -- start and resume ----------------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Resume from the newest whole checkpoint, or begin."""
        job = self.job
        if job.processes.is_main:
            self.checkpoints.sweep()
        job.processes.barrier()
        found = newest_of_main(self.checkpoints, job.processes)
        if found is not None:
            self.state, warnings = found
            for warning in warnings:
                job.say(f"warning: {warning}")
            brought = job.shared.bring(self.checkpoints.path(self.state.step))
            job.processes.together(lambda: self._restore(Checkpoints(brought.parent)))
            job.shared.drop(brought)  # every process has read it before anything is removed
        if job.processes.is_main:
            if found is not None:
                self.checkpoints.discard_after(self.state.step)
            moved = self.log.open_at(self.state.num_metrics_lines)
            if found is not None:
                job.say(f"resuming {self.config.name} at step {self.state.step} ({moved} later line(s) of metrics.jsonl moved away)")
                if lost := self.state.num_metrics_lines - self.log.num_lines:
                    job.say(f"warning: metrics.jsonl lacks {lost} line(s) that were there when the checkpoint was written")
        for line in describe(job):
            job.say(line)
        if found is None:
            self._write("start", {"world_size": job.processes.world_size, "leakage": [leak.as_record() for leak in job.leakages]})

    def _restore(self, checkpoints: Checkpoints) -> None:
        """Weights, moments and negatives of the checkpoint the state came from, which lies here."""
        job, step = self.job, self.state.step
        if self.state.base_sha256 != job.tuned.base_sha256:
            raise UserError(f"{job.base} has other weights than when {job.folder} was begun; give the run another name=")
        if self.state.data_sha256 != job.data_sha256:
            raise UserError(
                f"{self.config.data.source}{job.pool.place} holds other data than when {job.folder} was begun; give the run another name="
            )
        if self.state.matcher_sha256 not in (None, job.matcher_sha256):
            raise UserError(
                f"mining asks {self.config.matcher_model}, another cross-encoder than when {job.folder} was begun: give "
                "it the one it began with (mining.denoise.model, mining.distil.model or rerank.model), or give the run another name="
            )
        checkpoints.load_weights(step, job.tuned)
        checkpoints.load_optimizer(step, job.tuned, job.optimizer)
        if self.state.loss_scale is not None:
            self.stepper.loss_scale = self.state.loss_scale
        if self.state.negatives is not None:
            self.negatives_file = self.checkpoints.path(step) / "negatives.parquet"
            self._use(read_negatives(checkpoints.path(step) / "negatives.parquet", self.state.negatives, job.pool))

    def _freeze(self) -> FrozenEmbeddings:
        """Embeddings of the towers that are run once."""
        job, found = self.job, {}
        store = FrozenStore(job.folder / "frozen", job.tuned, job.pool, job.data_sha256, job.processes)
        for tower in cached_towers(self.config):
            num_rows = job.train_set.num_images if tower == "image" else len(job.pool)
            with self._side_bar(f"embedding ({tower}, once)", num_rows) as progress:
                found[tower] = store.rows(tower, num_workers=self.config.data.num_workers, on_progress=progress)
        if "image" in found and (unknown := found["image"].unknown()):
            first = ", ".join(job.train_set.image_ids[image] for image in unknown[:5])
            job.say(
                f"warning: {len(unknown):,} picture(s) did not decode and are replaced in training, e.g. {first}; --check-images says why"
            )
        return FrozenEmbeddings(found.get("image"), found.get("text"))

    # -- the parts of an iteration -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Take one step and write its line."""
        started = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self._loader())
        batch = next(self._batches)
        if isinstance(batch, ImageError):
            raise UserError(f"{batch}. --check-images lists every picture that does not decode")
        waited = time.perf_counter() - started
        result = self.stepper.take(batch, stop_asked=self.signals.asked)
        seconds = time.perf_counter() - started
        for message in batch.undecodable:
            tqdm.write(f"warning: replaced in step {batch.step}: {message}")
        self.state = replace(self.state, step=batch.step, evaluated=False, num_replaced=self.state.num_replaced + result.num_replaced)
        self.state = replace(self.state, loss_scale=self.stepper.loss_scale)
        self._write("step", step_record(self.job, self.order, batch.step, result, self.stepper.loss_scale, seconds, waited))
        self._bar.update(1)
        speed = self.config.train.batch_size / seconds
        self._bar.set_postfix_str(f"loss {result.loss:.4f}, {speed:.0f} images/s, waiting {100 * waited / seconds:.0f}%{self._last_eval}")
        if result.stop_asked:
            self._stop(together=True)

    def _loader(self) -> Iterable[Batch | ImageError]:
        """Batches from the next step to the one before the next mining: a worker must not look past it."""
        stop = self.config.train.max_steps
        if self.config.mining is not None:
            stop = next((step for step in range(self.state.step + 1, stop) if self._mining_due_at(step)), stop)
        builder = BatchBuilder(
            self.job.train_set,
            self.job.tuned.inputs,
            self.order,
            self.job.processes,
            random_crop_min_area=self.config.train.random_crop_min_area,
            negatives=columns_in_force(self.config.mining, self.negatives),
            frozen=self.frozen,
            pool=self.job.pool,
        )
        return pictures_loader(
            builder,
            num_workers=self.config.data.num_workers,
            sampler=range(self.state.step + 1, stop + 1),
            pin_memory=self.job.accelerator.device.type == "cuda",
        )

    def _mining_due_at(self, step: int) -> bool:
        """Whether negatives are mined with the weights after `step` steps."""
        mining = self.config.mining
        return mining is not None and is_due(mining, self.job.order, step)

    def _mine_if_due(self) -> None:
        """Refresh the negatives."""
        if self.config.mining is None or not self._mining_due_at(self.state.step) or self.state.mined_at_step == self.state.step:
            return
        self._batches = None
        job = self.job
        started = time.perf_counter()
        with self._side_bar("mining", num_rows(job, self.state.step)) as progress:
            found = refresh_negatives(job, self.state.step, self.negatives, progress, self.frozen)
        self.state = replace(self.state, mined_at_step=self.state.step, negatives=found.negatives.name)
        self._use(found.negatives)
        self.negatives_file = found.path
        composed = self.order.window_record()
        self._write("mining", found.sheet.as_record() | composed | {"seconds": time.perf_counter() - started})
        job.say(f"step {self.state.step}: {found.sheet}" + "".join(f"; {key}: {value:,.4g}" for key, value in composed.items()))

    def _true_pairs(self) -> TruePairs:
        mining = self.config.mining
        return TruePairs(self.job.pool, self.negatives, near_duplicates=mining is not None and mining.near_duplicates)

    def _use(self, negatives: Negatives) -> None:
        """Put a table in force: its captions become columns, or batches are composed of it; its relabelled pairs become positives."""
        self.negatives = negatives
        self.order = order_in_force(
            self.config.mining, self.job.order, self.job.train_set, negatives, self.state.mined_at_step, self.config.train.max_steps
        )
        self.stepper.true_pairs = self._true_pairs()

    def _evaluate_if_due(self) -> None:
        """Evaluate on val and on the watch sets, and note a new best."""
        step, val = self.state.step, self.job.val_set
        due = step % self.config.train.eval_every_steps == 0 or step == self.config.train.max_steps
        if not due or self.state.evaluated or (val is None and not self.job.watch_sets):
            return
        record = self._measure_val(val) if val is not None else None
        sightings = self._look()
        barred = [sighting.config.name for sighting in sightings if sighting.bars]
        score = record["mean_R@1"] if record is not None else None
        is_best = score is not None and not barred and (self.state.best_score is None or score > self.state.best_score)
        stopped_by = next((sighting.config.name for sighting in sightings if sighting.stops), None)
        self.state = replace(self.state, evaluated=True, stopped_by=stopped_by)
        if is_best:
            self.state = replace(self.state, best_step=step, best_score=score)
        if record is not None:
            self._write("eval", record | {"best": is_best})
            both = " / ".join(f"{100 * record[direction]['R@1']:.2f}" for direction in DIRECTIONS)
            self._last_eval = f", {record['split']} R@1 {both}"
            best = " (best so far)" if is_best else f" (cannot be best: {', '.join(barred)} forgotten)" if barred else ""
            self.job.say(f"step {step}: {record['split']} R@1 image to text / text to image {both}{best}")
        for sighting in sightings:
            self._write("watch", sighting.as_record())
            self.job.say(f"step {step}: {sighting}")
        if is_best:
            self._save()

    def _measure_val(self, val: RetrievalSet) -> dict[str, Any]:
        """What the line of an evaluation says of val."""
        with self._side_bar("evaluating", val.num_images + val.num_captions) as progress:
            stage = retrieve(
                f"step {self.state.step}", self.job.tuned.siglip, self.job.tuned.inputs, val, processes=self.job.processes,
                num_workers=self.config.data.num_workers, on_progress=progress,
            )  # fmt: skip
        values = values_of(val, stage)
        score = sum(values[direction]["R@1"] for direction in DIRECTIONS) / 2
        return {
            "split": val.split,
            **{direction: values[direction] for direction in DIRECTIONS},
            "mean_R@1": score,
            "seconds": stage.cost["seconds"],
        }

    def _look(self) -> list[Sighting]:
        """What became of the watch sets, if there are any."""
        if not self.job.watch_sets:
            return []
        with self._side_bar("watching", self.watch.num_rows) as progress:
            return self.watch.look(self.state.step, self.job.tuned.siglip, self.job.tuned.inputs, progress)

    # -- checkpoints and the rest ------------------------------------------------------------------------------------------------------

    def _ends_here(self) -> bool:
        return self.state.step == self.config.train.max_steps or self.state.stopped_by is not None

    def _checkpoint_due(self) -> bool:
        return self.state.step % self.config.train.checkpoint_every_steps == 0 or self._ends_here()

    def _save(self, *, sync: bool = False) -> None:
        """Commit a checkpoint of this moment (main process), then remove old ones."""
        job, is_main = self.job, self.job.processes.is_main
        if is_main:
            self.log.sync()
            self.state = replace(self.state, num_metrics_lines=self.log.num_lines)
        if is_main or self.config.train.shard:
            self.checkpoints.save(self.state, job.tuned, job.optimizer, self.negatives_file, writes=is_main)
        if is_main:
            if self.negatives_file is not None:  # of the newest checkpoint: an older one, which a resumed run reads, will be pruned
                self.negatives_file = self.checkpoints.path(self.state.step) / "negatives.parquet"
            self.checkpoints.prune(self.config.train.keep_checkpoints, self.state.best_step)
        if sync:
            self.job.processes.barrier()

    def _stop(self, *, together: bool) -> NoReturn:
        """Write a checkpoint and leave.

        Args:
            together: every process is here; then none leaves before the checkpoint is written, for a launcher kills the others soon after
                the first has left.
        """
        self._save(sync=together)
        raise Stopped(self.signals.exit_code, self.state.step)

    def _write(self, event: str, record: dict[str, Any]) -> None:
        if self.job.processes.is_main:
            self.log.write(event, self.state.step, record)
            if self.wandb is not None:
                self.wandb.write(event, self.state.step, record)

    def _side_bar(self, text: str, total: int) -> SideBar:
        return SideBar(text, total // self.job.processes.world_size, self.job.processes.is_main, self.leave_if_asked)

    def leave_if_asked(self) -> None:
        """Leave a long evaluation or mining when a signal came; its work is done again after the resume.

        Only the main process leaves by itself; the others, waiting for its part, find it gone (train/__main__.py). Were they to go first,
        it could be left waiting for theirs, its checkpoint not written. With sharded weights it could not write one alone: then all leave
        after the next step, or at the end of the last evaluation.

        Raises:
            Stopped: after writing a checkpoint of where the weights stand.
        """
        if self.signals.asked and self.job.processes.is_main and not self.config.train.shard:
            self._stop(together=False)

    def leave_final_if_asked(self) -> None:
        """The same after the last step, whose checkpoint is written already.

        Raises:
            Stopped: at once.
        """
        if self.signals.asked and self.job.processes.is_main:
            raise Stopped(self.signals.exit_code, self.state.step)

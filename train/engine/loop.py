"""The loop that every run goes through: step, evaluate, checkpoint, resume; its subclasses define what a step and an evaluation are.

Order at step s: train step s; evaluate if it is due; write a checkpoint if one is due; before step s + 1, what the run does between steps.
What happens at a step follows from its number, so a resumed run is the straight one. A checkpoint is committed before step 1.
A stop signal (eval/signals.py) sets a flag, which every process heeds at the next step; so does a checkpoint that cannot be written.
"""

from __future__ import annotations

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

from eval.atomic import sweep
from eval.dataset.images import ImageError
from eval.dataset.picture_warnings import hand_up
from eval.encoder.loader import block_loader
from eval.errors import CommandError, NotFinite, OutOfMemory, UserError, WriteError, is_out_of_memory, needing_memory
from eval.manifest import made_split
from eval.progress import Part, bar
from eval.search.ranking import DIRECTIONS
from eval.sharded import is_sharded
from eval.signals import StopSignals, next_item
from train.data import data_record
from train.engine.begin import begin_at
from train.engine.broken_pictures import BrokenPictures
from train.engine.checkpoint import Checkpoints, Gathered, State, Writer, newest_of_main
from train.engine.evaluated_pictures import check_evaluated
from train.engine.folder import learnt
from train.engine.metrics_log import CURVES, FIGURE_COLUMNS, MetricsLog, Trackers, figure_rows
from train.engine.run import NoShare
from train.optim.ema import WeightAverage
from train.optim.optimizer import peak_rates
from train.optim.update import rate_factor

if TYPE_CHECKING:
    from train.data.batches import ShareBuilder
    from train.data.mined_order import Order
    from train.engine.curves import Curves
    from train.engine.run import Evaluation, Event, Run


_STEPS_OF_WAITING, _LARGE_WAIT = 60, 0.25
_CHECKPOINT_MEMORY = "This was for a checkpoint, which takes up to 12 bytes a parameter of the machine's own memory (docs/memory.md)"


class Stopped(CommandError):
    """The run was told to stop and has written a checkpoint; carries the exit code (130 for Ctrl-C, else 143)."""

    label = "stopped"
    is_shared = True

    def __init__(self, exit_code: int, step: int) -> None:
        super().__init__(f"after step {step}; the same command goes on from there")
        self.exit_code = exit_code


class ProcessesLost(CommandError):
    """The other processes do not answer: their machine, their launcher or the network is gone. Exit code 1, on every process left."""

    def __init__(self, rank: int, cause: str) -> None:
        super().__init__(
            f"process {rank} on machine {socket.gethostname()} lost the other processes ({cause}). If one of them says why it ended, "
            "that is the reason. What was committed is whole; the same command on every machine goes on from there (docs/multi-node.md)"
        )


def is_loss_of_processes(error: RuntimeError) -> bool:
    """Whether torch.distributed raised this error for processes that are gone or do not answer in time."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


@dataclass(frozen=True)
class _Share:
    """What this process has of a step.

    Attributes:
        batch: None: a signal came before it was there, or it cannot be built.
        fault: why it cannot be built.
    """

    batch: Any
    fault: str


def has_own_memory(device: torch.device) -> bool:
    """Whether a device has memory of its own, which is there or not when it is asked for."""
    return device.type != "cpu"


class BaseLoop(ABC):
    """One run from its current step to its last."""

    order: Order
    """The images of each step."""

    def __init__(self, job: Run, signals: StopSignals, stepper: Any) -> None:
        """stepper: its `train_step(batch, stop_asked=...)` gives a StepOutcome or raises NotFinite, or NoShare where some process has no
        batch; its `update` has fp16's loss scale."""
        self._run, self.signals, self.stepper = job, signals, stepper
        scale = stepper.update.loss_scale
        self.state = State(
            base_sha256=job.tuned.base_sha256,
            data_sha256=job.pool.data_sha256,
            loss_scale=scale,
            base_identity=job.tuned.base_identity,
            config=learnt(job.config),
        )
        decay = job.config.train.ema_decay
        self.average = None if decay is None else WeightAverage(job.tuned, decay)
        self._peaks = peak_rates(job.optimizer)
        self.checkpoints = Checkpoints(job.folder / "checkpoints")
        self.writer = Writer(signals.ask)
        self._saved: State | None = None
        """Of the checkpoint that was handed to the writer last (main process)."""
        self._told_sync = False
        self.metrics = MetricsLog(job.folder)
        self.broken = BrokenPictures(job)
        self.trackers: Trackers | None = None
        self.extra_file: Path | None = None
        """A file that each checkpoint holds, next to weights and optimizer state."""
        self._bar: Any = None
        self._builder: Any = None  # of the batches
        self._last_of_batches = 0  # the step that they reach
        self._waited = 0.0  # for batches, seconds of this step
        self._batches: Iterator[Any] | None = None
        self._share: _Share | None = None  # of the next step, where it was read ahead
        if has_own_memory(job.accelerator.device):
            stepper.update.meanwhile = self._read_ahead
        self._last_eval = list[Part]()
        self._waits = list[tuple[float, float]]()
        self._stop_asked: Callable[[], bool] = lambda: False
        """Whether any process was told to stop when all were last asked."""

    # -- what each kind of run defines -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def setup(self) -> None:
        """What is done once, at every start, when weights and optimizer state are there; not called when no step is left."""

    @abstractmethod
    def restore_extra(self, checkpoints: Checkpoints) -> None:
        """Restore what a checkpoint holds next to weights and optimizer state, or refuse it (raises UserError)."""

    @abstractmethod
    def batches(self) -> tuple[ShareBuilder, int]:
        """(what builds a step's batch, with `step` and `undecodable`; the last step that it can build now)."""

    @abstractmethod
    def step_record(self, outcome: Any) -> tuple[dict[str, Any], list[Event]]:
        """(what the line of the step just taken holds of this kind of run, the events that follow it)."""

    @abstractmethod
    def largest_batch(self) -> Any:
        """This process's share of a step, as large as any of the run's can be; what it holds does not matter."""

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Measure the weights that the model holds."""

    @abstractmethod
    def before_step(self) -> None:
        """What is due before the next step."""

    def num_refreshes(self) -> int:
        """How often the run mines anew."""
        return 0

    # -- the run -------------------------------------------------------------------------------------------------------------------

    def run(self) -> State:
        """Go on from the newest checkpoint, or start, to the last step, or to where the run is ended early.

        Raises:
            Stopped: a signal asked for it; a checkpoint was written.
            NotFinite, OutOfMemory, NoReadableCheckpoint, UserError, OSError: see train/engine/command.py for their exit codes.
        """
        job, max_steps = self._run, self._run.config.train.max_steps
        self._start()
        if job.processes.is_main:
            self.trackers = Trackers(job.config, job.log, step=self.state.step, is_old=self.state.step > 0)
        self._bar = bar(max_steps, job.config.name, "step", show=job.processes.is_main, initial=self.state.step)
        try:
            self.save()
            curves = None
            if not self._ends_here():
                self._rehearse()
                self.setup()
            while True:
                with self._explaining():
                    self._evaluate_if_due()
                if self._ends_here() or (self.state.evaluated and self.state.step):  # there is no line before step 1
                    curves = curves or self._curves()
                    if curves is not None:
                        curves.draw(is_last=self._ends_here())
                if self._ends_here():
                    self.save(waits=True)
                    return self.state
                if self.state.step % job.config.train.checkpoint_every_steps == 0:
                    self.save()
                with self._explaining():
                    self.before_step()
                    self._step()
        finally:
            self._bar.close()
            if (failure := self.writer.close()) is not None:  # of an end for another reason
                job.log(f"warning: the checkpoint of this moment could not be written: {failure}")
            self.metrics.close()

    def track_end(self, report: Mapping[str, Any] | None) -> None:
        """Show the trackers what a run ends with: its figures as a table, its curves; on the main process.

        Args:
            report: the record of the final report; None: there is none.
        """
        if self.trackers is None:
            return
        if report is not None:
            self.trackers.table("final/figures", FIGURE_COLUMNS, figure_rows(report), self.state.step)
        self.trackers.picture("curves", self._run.folder / CURVES, self.state.step)

    def close_trackers(self) -> None:
        """Finish the run there."""
        if self.trackers is not None:
            self.trackers.close()

    def _curves(self) -> Curves | None:
        """What draws the run's curves, on the main process; matplotlib is imported for it."""
        if not self._run.processes.is_main or not self._run.config.curves:
            return None
        from train.engine.curves import Curves

        return Curves(self._run)

    def _rehearse(self) -> None:
        """Take the largest step of the run once and throw it away, so that memory that does not suffice is known now, not hours later.

        Not on a CPU, which promises memory that it does not have.

        Raises:
            OutOfMemory: it does not suffice.
        """
        job, device = self._run, self._run.accelerator.device
        if not has_own_memory(device):
            return
        with needing_memory(f"This was a trial of the largest step of the run. {job.memory_remedy()}"):
            self.stepper.rehearse(self.largest_batch())
        if device.type == "cuda":
            job.log(f"memory    the largest step takes {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say of what is not finite how the run can go on: from a checkpoint before these weights, which may be finite and ruined.

        Raises:
            NotFinite: in place of one that does not say it.
        """
        try:
            yield
        except NotFinite as error:
            try:
                self.writer.wait()
            except WriteError as failure:  # which cannot be helped now, and is not the reason
                self._run.log(f"warning: {failure}")
            steps = self.checkpoints.steps() if self._run.processes.is_main else []
            last = max((step for step in steps if step < self.state.step), default=steps[-1] if steps else 0)
            train = self._run.config.train
            keys = f"train.begin_at={self.checkpoints.path(last)} train.learning_rate={train.learning_rate / 10:g}"
            keys += "" if train.precision == "fp32" else " or train.precision=fp32"
            raise NotFinite(
                f"{str(error).rstrip('.')}. Nothing of it was kept. Go on from a checkpoint before it, under another name and with other "
                f"keys, such as name=NEW {keys} (docs/resuming.md)"
            ) from error

    def _start(self) -> None:
        """Resume from the newest whole checkpoint, or begin."""
        job = self._run
        if job.processes.is_main:
            sweep(self.checkpoints.folder, is_alone=True)
        job.processes.barrier()
        found = newest_of_main(self.checkpoints, job.processes)
        if found is not None:
            self.state, warnings = found
            self._saved = self.state
            for warning in warnings:
                job.log(f"warning: {warning}")
        job.processes.together(lambda: self._check_data(is_new=found is None))
        job.processes.together(lambda: self.broken.begin(is_new=found is None))
        if found is not None:
            brought = job.shared.bring(self.checkpoints.path(self.state.step))
            job.processes.together(lambda: self._restore(Checkpoints(brought.parent)))
            # Known to be these: a checkpoint of an earlier version lacks them.
            self.state = replace(self.state, base_identity=job.tuned.base_identity, config=learnt(job.config))
            job.shared.drop(brought)  # every process has read it before anything is removed
        if job.processes.is_main:
            if found is not None:
                self.checkpoints.discard_after(self.state.step)
                self.checkpoints.prune(job.config.train.keep_checkpoints, self.state.best_step)
            moved = self.metrics.open_at(self.state.num_metrics_lines, self.state.metrics_sha256)
            if found is not None:
                away = f" ({moved} later line(s) of metrics.jsonl moved away)" if moved else ""
                job.log(f"resuming {job.config.name} at step {self.state.step}{away}")
                if damage := self.metrics.damage:
                    job.log(f"warning: {job.folder}/metrics.jsonl {damage}, unlike when the checkpoint was written; the run goes on")
        for line in job.describe():
            job.log(line)
        if found is None:
            for line in check_evaluated(job, lambda count: self.leave_unsaved_if_asked()):
                job.log(line)
        if found is None and job.config.train.begin_at is not None:
            self.state = begin_at(job, job.config.train.begin_at, self.state)
            if self.average is not None:
                self.average.restart()
        if found is None:
            self.write("start", {"world_size": job.processes.world_size, "leakage": [leak.as_record() for leak in job.leakages]})

    def _check_data(self, *, is_new: bool) -> None:
        """Record the data that a new run begins with; refuse others when it goes on (main process)."""
        job, path = self._run, self._run.folder / data_record.FILE
        if not job.processes.is_main:
            return
        if is_new or not path.exists():
            data_record.record_data(path, job.splits)
        else:
            data_record.check_data(path, job.splits, job.config.data.source)
        job.splits.write_made(job.folder / made_split.FILE)

    def _restore(self, checkpoints: Checkpoints) -> None:
        """Restore weights, optimizer state and the rest from the checkpoint the state came from."""
        job, step = self._run, self.state.step
        self.state.check_base(job.base, job.folder, job.tuned)
        if self.state.data_sha256 != job.pool.data_sha256:
            place = f"{job.config.data.source}{job.pool.place}"
            raise UserError(f"{place} holds other data than when {job.folder} was begun; give the run another name=")
        self.restore_extra(checkpoints)
        if self.state.loss_scale is not None:
            self.stepper.update.loss_scale = self.state.loss_scale
        checkpoints.load_weights(step, job.tuned)
        checkpoints.load_optimizer(step, job.tuned, job.optimizer)
        if self.average is not None:
            checkpoints.load_average(step, self.average)

    def _step(self) -> None:
        """Take one step and write its line."""
        started, self._waited = time.perf_counter(), 0.0
        share, self._share = self._share or self._next_share(), None
        batch, outcome = share.batch, None
        try:
            outcome = self.stepper.train_step(batch, stop_asked=self.signals.asked)
        except NoShare:
            pass
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise OutOfMemory.of(error, self._run.memory_remedy()) from error
            raise
        if outcome is None:  # some process was told to stop before its share was there, or cannot build it
            self._run.processes.raise_together(share.fault)
            self._stop()
        if self.average is not None and not outcome.skipped:
            self.average.update()
        seconds = time.perf_counter() - started
        if outcome.num_replaced:  # the same on every process
            self.broken.tell(batch.step, batch.undecodable)
        train, scale = self._run.config.train, self.stepper.update.loss_scale
        num_replaced = self.state.num_replaced + outcome.num_replaced
        self.state = replace(self.state, step=batch.step, evaluated=False, num_replaced=num_replaced, loss_scale=scale)
        own, events = self.step_record(outcome)
        factor = rate_factor(batch.step, train.max_steps, train.num_warmup_steps)
        record = {"epoch": self.order.epoch(batch.step), "loss": outcome.loss} | own
        record |= {
            "grad_norm": outcome.grad_norm,
            "learning_rate": {part: highest * factor for part, (_, highest) in self._peaks.items()},
            "num_replaced": outcome.num_replaced,
            "seconds": seconds,
            "images_per_second": train.batch_size / seconds,
            "data_wait_share": self._waited / seconds,
        }
        if self._run.accelerator.device.type == "cuda":
            record["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if scale is not None:
            record |= {"loss_scale": scale.scale, "skipped": outcome.skipped, "num_skipped": scale.num_skipped}
        self.write("step", record)
        self._write_events(events)
        speed = train.batch_size / seconds
        rate = max(highest * factor for _, highest in self._peaks.values())
        self._bar.set_parts(
            [
                (f"loss {outcome.loss:.4f}", f"loss {outcome.loss:.3f}"),
                *self._last_eval,
                (f"{speed:.0f} images/s", f"{speed:.0f} img/s"),
                (f"waiting {100 * self._waited / seconds:.0f}%", f"wait {100 * self._waited / seconds:.0f}%"),
                (f"rate {rate:.2g}", f"lr {rate:.0e}".replace("e-0", "e-")),
            ]
        )
        self._bar.update(1)
        self._tell_waiting(self._waited, seconds)
        if outcome.stop_asked:
            self._stop()

    def _tell_waiting(self, waited: float, seconds: float) -> None:
        """Say once, after some steps, that much of their time goes into waiting for pictures, and what helps."""
        if len(self._waits) == _STEPS_OF_WAITING:
            return
        self._waits.append((waited, seconds))
        if len(self._waits) == _STEPS_OF_WAITING:
            waited, seconds = map(sum, zip(*self._waits[_STEPS_OF_WAITING // 2 :], strict=True))  # not those that started the workers
            if waited > _LARGE_WAIT * seconds:
                self._run.log(f"warning: {self._run.waiting_line(waited / seconds)}")

    def _next_share(self, after: int = 0) -> _Share:
        """This process's share of the next step, or of the one so many steps after it."""
        started, next_step = time.perf_counter(), self.state.step + 1 + after
        if self._batches is None:
            (builder, last), workers = self.batches(), self._run.config.data.num_workers
            first, at_once = next_step, builder.num_parts(next_step)
            keys = ((step, part) for step in range(first, last + 1) for part in range(at_once))
            loaded = block_loader(builder, num_workers=workers, item_bytes=builder.part_bytes, at_once=at_once, sampler=keys)
            self._builder, self._batches, self._last_of_batches = builder, loaded, last
        parts: list[Any] = []
        num_parts = self._builder.num_parts(next_step)
        while len(parts) < num_parts and (part := next_item(self._batches)) is not None:
            parts.append(part)
        faults = [f"{part}. --check-images lists every picture that does not decode" for part in parts if isinstance(part, ImageError)]
        batch = None if faults or len(parts) < num_parts else self._builder.join(parts)
        self._waited += time.perf_counter() - started
        return _Share(batch, faults[0] if faults else "")

    def _read_ahead(self) -> None:
        """Read this process's share of the step after the one that the device is taking, where it follows from what is in force now."""
        if self._batches is not None and self.state.step + 1 < self._last_of_batches:
            self._share = self._next_share(after=1)

    def _evaluate_if_due(self) -> None:
        """Evaluate the weights, or their averages where the run has them, write the lines, and note a new best."""
        job, step, train = self._run, self.state.step, self._run.config.train
        due = step % train.eval_every_steps == 0 or step == train.max_steps
        if not due or self.state.evaluated or (job.val_set is None and not job.splits.watch):
            return
        with nullcontext() if self.average is None else self.average.in_model():
            found = self.evaluate()
        best_score, is_best = self.state.best_score, False
        if (line := found.line) is not None:
            is_best = not found.barred and (best_score is None or line["mean_R@1"] > best_score)
            self.write("eval", line | {"best": is_best} | ({} if self.average is None else {"weights": "ema"}))
            both = " / ".join(f"{100 * line[direction]['R@1']:.2f}" for direction in DIRECTIONS)
            short = "/".join(f"{100 * line[direction]['R@1']:.1f}" for direction in DIRECTIONS)
            self._last_eval = [(f"{line['split']} R@1 {both}", f"R@1 {short}")]
            best = " (best so far)" if is_best else f" (cannot be best: {', '.join(found.barred)} forgotten)" if found.barred else ""
            job.log(f"step {step}: {line['split']} R@1 image to text / text to image {both}{found.note}{best}")
            best_score = line["mean_R@1"]
        self._write_events(found.events)
        self.state = replace(self.state, evaluated=True, stopped_by=found.stopped_by)
        if is_best:
            self.state = replace(self.state, best_step=step, best_score=best_score)
            self.save()

    def _write_events(self, events: list[Event]) -> None:
        for event, record, text in events:
            self.write(event, record)
            self._run.log(text)

    # -- checkpoints and the rest ------------------------------------------------------------------------------------------------------

    def _ends_here(self) -> bool:
        return self.state.step == self._run.config.train.max_steps or self.state.stopped_by is not None

    def save(self, *, waits: bool = False) -> None:
        """Have a checkpoint of this moment committed, then old ones removed, by a thread of the main process, when the one before is there.

        Args:
            waits: until it is done; the other processes too.

        Raises:
            WriteError: this one, or the one before, cannot be written; on every process.
            OutOfMemory: there is no memory for it, likewise.
        """
        job, is_main = self._run, self._run.processes.is_main
        if self.average is not None:
            self.average.put_back()  # where an evaluation is left
        hand_up(job.processes)
        # Errors are raised on every process: none is left waiting for a main process whose disk is full.
        if job.processes.from_main(self._save_due):
            with job.processes.jointly(), needing_memory(_CHECKPOINT_MEMORY):
                if is_main or is_sharded(job.tuned.module):
                    self._hand_over(waits)
        with job.processes.jointly(), needing_memory(_CHECKPOINT_MEMORY):
            if is_main and waits:
                self.writer.wait()

    def _save_due(self) -> bool:
        """Whether this moment has no checkpoint yet, once the one before is committed (main process)."""
        with needing_memory(_CHECKPOINT_MEMORY):
            self.writer.wait()
        self.state = replace(self.state, num_metrics_lines=self.metrics.num_lines, metrics_sha256=self.metrics.sha256)
        return self.state != self._saved

    def _hand_over(self, waits: bool) -> None:
        """Gather what the checkpoint holds and let the thread write it; without a copy if it is waited for, or where there is no room."""
        job, train, state = self._run, self._run.config.train, self.state
        gathered = self.checkpoints.gather(
            state,
            job.tuned,
            job.optimizer,
            self.extra_file,
            average=self.average,
            memory=None if waits else self.writer.memory,
            writes=job.processes.is_main,
        )
        if gathered is None:
            return

        def write(gathered: Gathered = gathered) -> None:
            self.metrics.sync()
            self.checkpoints.commit(gathered)
            self.checkpoints.prune(train.keep_checkpoints, state.best_step)

        self._saved = state
        self.writer.start(write)
        if self.extra_file is not None:  # of the newest checkpoint: an older one, which a resumed run reads, will be pruned
            self.extra_file = self.checkpoints.path(state.step) / "negatives.parquet"
        if gathered.is_copy or waits:
            return
        self.writer.wait()
        if not self._told_sync:
            job.log("memory    has no room for a copy of weights and optimizer state: steps wait while a checkpoint is written")
        self._told_sync = True

    def _stop(self) -> NoReturn:
        """Write a checkpoint and leave; none leaves before it is written, for a launcher kills the others soon after the first has left."""
        self.save(waits=True)
        raise Stopped(self.signals.exit_code, self.state.step)

    def write(self, event: str, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl, and its mirror (main process)."""
        if self._run.processes.is_main:
            self.metrics.write(event, self.state.step, record)
            if self.trackers is not None:
                self.trackers.write(event, self.state.step, record)

    @contextmanager
    def side_bar(self, text: str, total: int, unit: str = "row") -> Iterator[Callable[[int], None]]:
        """A bar for what happens between steps; whenever it advances, a signal is heeded."""
        processes = self._run.processes
        with bar(total // processes.world_size, text, unit, show=processes.is_main, leave=False) as progress:

            def advance(rows: int) -> None:
                progress.update(rows)
                self.leave_if_asked()

            yield advance

    def leave_if_asked(self) -> None:
        """Leave a long evaluation or mining when a signal came to any process; its work is done again after the resume.

        Call on every process, at the same places. Several processes learn at one such place what was asked at the one before, so that none
        waits for the slowest at each.

        Raises:
            Stopped: after writing a checkpoint of the current weights.
        """
        if self._stop_agreed():
            self._stop()

    def leave_unsaved_if_asked(self) -> None:
        """The same where there is nothing to save: before the first step, or after the last, whose checkpoint is written already.

        Raises:
            Stopped: at once.
        """
        if self._stop_agreed():
            raise Stopped(self.signals.exit_code, self.state.step)

    def _stop_agreed(self) -> bool:
        if self._run.processes.world_size == 1:
            return self.signals.asked
        before, self._stop_asked = self._stop_asked, self._run.processes.any_later(self.signals.asked)
        agreed = before()
        if agreed:
            self._stop_asked()  # nothing is left under way
        return agreed

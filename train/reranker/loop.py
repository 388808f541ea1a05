"""The loop that tunes a reranker: what a step and an evaluation are. When each is due, checkpoints and resume: train/engine/loop.py."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eval.errors import UserError
from eval.metrics.evaluate import values_of
from eval.metrics.stage_metrics import mean_recall_at_1
from eval.search.ranking import DIRECTIONS
from rerank.scoring.candidates import candidate_lists
from train.engine.checkpoint import Checkpoints, State
from train.engine.loop import BaseLoop, StopSignals
from train.engine.metrics_log import gpu_record, scale_record
from train.optim.update import rate_factor
from train.reranker.batches import HardTables, MatchBatch, MatchBatches, PairKind
from train.reranker.collapse import LEAST_SCORE_STD, RunningLoss, loss_warning, score_warning
from train.reranker.evaluation import first_stage, measure_cross_encoder
from train.reranker.job import RerankerJob
from train.reranker.negatives import as_hard_tables, check_mined, mine_tables, read_tables
from train.reranker.step import MatchResult, MatchStepper

if TYPE_CHECKING:
    from eval.search.stage import Stage


class RerankerLoop(BaseLoop):
    """One run of a tuning from its current step to its last."""

    def __init__(self, job: RerankerJob, signals: StopSignals) -> None:
        self.job, self.config = job, job.config
        self.stepper = MatchStepper(job.config.train, job.config.seed, job.tuned, job.optimizer, job.processes, job.accelerator.autocast)
        self.running, self._was_named = RunningLoss(), False
        self._tables = HardTables(None, None)
        self._val_stage: Stage | None = None
        self._retriever_values: Any = None
        start = State(
            base_sha256=job.tuned.base_sha256,
            data_sha256=job.pool.data_sha256,
            loss_scale=self.stepper.update.loss_scale,
            further={"miner_sha256": job.retriever.base_sha256, "running": self.running.as_record()},
        )
        super().__init__(job, signals, start)

    def restore_extra(self, checkpoints: Checkpoints) -> None:
        """Loss scale and running loss of a checkpoint; refuse another retriever than the run was begun with."""
        further = self.state.further or {}
        if further.get("miner_sha256") != self.job.retriever.base_sha256:
            raise UserError(
                f"{self.config.miner} has other weights than when {self.job.folder} was begun; give the run another name=, or bring the "
                "retriever it began with back"
            )
        self.running = RunningLoss(**further["running"])
        if self.state.loss_scale is not None:
            self.stepper.update.loss_scale = self.state.loss_scale

    def setup(self) -> None:
        """Mine the hard negatives, or read those that were mined when the run began."""
        if self.config.negatives.near_duplicates:
            _ = self.job.pool.near_duplicate_positives  # once here, not once in every worker
        if self.state.negatives is not None:
            self._tables = as_hard_tables(self.job, read_tables(self.job, self.state.negatives))
            return
        started = time.perf_counter()
        with self.side_bar("mining", self.job.train_set.num_images + len(self.job.pool)) as progress:
            mined = mine_tables(self.job, progress)
        for one in mined:
            kind = "hard captions of images" if one.form == "columns" else "hard images of captions"
            self.job.log(f"{kind}: {one.report}")
        check_mined(self.config.negatives, [one.table for one in mined])
        self._tables = as_hard_tables(self.job, {one.form: one.table for one in mined})
        self.state = replace(self.state, mined_at_step=0, negatives=" ".join(one.table.name for one in mined))
        for one in mined:
            self.write("mining", {"form": one.form} | one.report.as_record() | {"seconds": time.perf_counter() - started})

    def batches(self) -> tuple[MatchBatches, int]:
        """What builds batches, and the last step."""
        job = self.job
        builder = MatchBatches(
            job.pool,
            job.tuned.inputs,
            job.order,
            job.processes,
            self.config.negatives,
            self._tables,
            random_crop_min_area=self.config.train.random_crop_min_area,
        )
        return builder, self.config.train.max_steps

    def train_step(self, batch: MatchBatch, stop_asked: bool) -> MatchResult:
        """Take one step, and follow the running loss."""
        result = self.stepper.train_step(batch, stop_asked=stop_asked)
        self._was_named = self.running.named
        if not result.skipped:
            self.running = self.running.after(result.loss, result.constant_loss, self.config.constant_answer)
        further = (self.state.further or {}) | {"running": self.running.as_record()}
        self.state = replace(self.state, loss_scale=self.stepper.update.loss_scale, further=further)
        return result

    def record_step(self, step: int, outcome: MatchResult, seconds: float, waited: float) -> None:
        """Write the line of a step, and name a constant answer."""
        train, job = self.config.train, self.job
        factor = rate_factor(step, train.max_steps, train.num_warmup_steps)
        record = {
            "epoch": job.order.epoch(step),
            "loss": outcome.loss,
            "constant_loss": outcome.constant_loss,
            "gap": outcome.gap,
            **{f"num_{kind.name.lower()}": count for kind, count in outcome.num_pairs.items()},
            "shortfall": outcome.shortfall,
            "grad_norm": outcome.grad_norm,
            "learning_rate": {group["part"]: group["peak"] * factor for group in job.optimizer.param_groups},
            "num_replaced": outcome.num_replaced,
            "seconds": seconds,
            "images_per_second": train.batch_size / seconds,
            "data_wait_share": waited / seconds,
            **gpu_record(job.accelerator.device),
            **scale_record(self.stepper.update.loss_scale, skipped=outcome.skipped),
        }
        self.write("step", record)
        if step == 1:
            job.log(
                f"before the first update the loss is {outcome.loss:.4f}; a cross-encoder that answers the same to every pair gets "
                f"{outcome.constant_loss:.4f} at {outcome.num_true} true to {outcome.num_false} false pairs"
                + (f" ({outcome.num_pairs[PairKind.EASY]} of them easy)" if outcome.num_pairs[PairKind.EASY] else "")
            )
        # Logged once when the running loss comes to be a constant answer's, and again only after it has left it.
        if self.running.named and not self._was_named:
            loss, constant = self.running.means
            self.write("constant_answer", {"seen_in": "loss", "loss": loss, "constant_loss": constant})
            self.job.log(f"warning: {loss_warning(self.running, outcome.num_true, outcome.num_false)}")

    def can_evaluate(self) -> bool:
        """Whether there is a val split."""
        return self.job.val_set is not None

    def evaluate(self) -> tuple[float | None, list[str], str | None]:
        """Rerank the retriever's top-K of val with the cross-encoder as it is now, and write the line."""
        job, val, step = self.job, self.job.val_set, self.state.step
        assert val is not None
        stage = self._retrieved()
        pairs = candidate_lists([stage.rankings[direction] for direction in DIRECTIONS], self.config.evaluation.top_k).num_pairs
        with self.side_bar("evaluating", pairs, "pair") as progress:
            found = measure_cross_encoder(job, val, stage, progress)
        is_best = self.is_best(found.score, [])
        record: dict[str, Any] = {
            "split": val.split,
            **{direction: found.values[direction] for direction in DIRECTIONS},
            "mean_R@1": found.score,
            "miner_mean_R@1": mean_recall_at_1(self._retriever_values),
            "score_std": found.score_std,
            "seconds": found.seconds,
            "best": is_best,
        }
        self.write("eval", record)
        both = " / ".join(f"{100 * found.values[direction]['R@1']:.2f}" for direction in DIRECTIONS)
        alone = " / ".join(f"{100 * self._retriever_values[direction]['R@1']:.2f}" for direction in DIRECTIONS)
        self._last_eval = f", {val.split} R@1 {both}"
        best = " (best so far)" if is_best else ""
        job.log(f"step {step}: {val.split} R@1 image to text / text to image {both} (the retriever alone {alone}){best}")
        if found.score_std < LEAST_SCORE_STD:
            self.write("constant_answer", {"seen_in": "scores", "score_std": found.score_std})
            job.log(f"warning: {score_warning(found.score_std, str(val.split))}")
        return found.score, [], None

    def _retrieved(self) -> Stage:
        """The retriever's retrieval of val: made once."""
        val = self.job.val_set
        assert val is not None
        if self._val_stage is None:
            with self.side_bar("retrieving val", val.num_images + val.num_captions) as progress:
                self._val_stage = first_stage(self.job, val, progress)
            self._retriever_values = values_of(val, self._val_stage)
        return self._val_stage

    def before_step(self) -> None:
        """Nothing: the retriever does not change, so what it mines does not either."""

"""The loop that tunes a reranker: what a step and an evaluation are. When each is due, checkpoints and resume: train/engine/loop.py."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from eval.encoder.identity import check_identity
from eval.errors import UserError
from eval.metrics.evaluate import values_of
from eval.metrics.stage_metrics import mean_recall_at_1
from eval.search.ranking import DIRECTIONS
from eval.signals import StopSignals
from rerank.scoring.candidates import candidate_lists
from train.data.batches import Parts
from train.engine.checkpoint import Checkpoints
from train.engine.loop import BaseLoop
from train.engine.run import Evaluation, Event
from train.reranker.batches import HardTables, MatchBatch, MatchBatches, PairKind
from train.reranker.collapse import LEAST_SCORE_STD, REMEDY, RunningLoss, constant_loss, loss_warning
from train.reranker.evaluation import first_stage, measure_cross_encoder
from train.reranker.job import RerankerJob
from train.reranker.largest import largest_batch
from train.reranker.negatives import as_hard_tables, mine_tables, read_tables
from train.reranker.step import MatchResult, MatchStepper

if TYPE_CHECKING:
    from eval.search.stage import Stage


class RerankerLoop(BaseLoop):
    """One run of a tuning from its current step to its last."""

    def __init__(self, job: RerankerJob, signals: StopSignals) -> None:
        self.job, self.config = job, job.config
        self.order, self.running = job.order, RunningLoss()
        self._tables = HardTables(None, None)
        self._val_stage: Stage | None = None
        self._retriever_values: Any = None
        stepper = MatchStepper(job.config.train, job.config.seed, job.tuned, job.optimizer, job.processes, job.accelerator.autocast)
        super().__init__(job, signals, stepper)
        self._follow(self.running)

    def _follow(self, running: RunningLoss) -> None:
        """Keep the running loss, for the next checkpoint too."""
        self.running = running
        retriever = self.job.retriever
        further = {"miner_sha256": retriever.base_sha256, "miner_identity": retriever.base_identity, "running": asdict(running)}
        self.state = replace(self.state, further=further)

    def restore_extra(self, checkpoints: Checkpoints) -> None:
        """The running loss of a checkpoint; refuse another retriever than the run was begun with."""
        further = self.state.further or {}
        check_identity(self.config.miner, str(self.job.folder), further.get("miner_identity"), self.job.retriever.base_identity)
        if further.get("miner_sha256") != self.job.retriever.base_sha256:
            raise UserError(
                f"{self.config.miner} has other weights than when {self.job.folder} was begun; give the run another name=, or bring the "
                "retriever it began with back"
            )
        self._follow(RunningLoss(**further["running"]))

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
        for form, (_, report) in mined.items():
            what = "hard captions of images" if form == "columns" else "hard images of captions"
            self.job.log(f"{what}: {'; '.join(report.sentences())}")
        tables = {form: table for form, (table, _) in mined.items()}
        if not any(len(table) for table in tables.values()) and not self.config.negatives.fill_with_easy:
            raise UserError(
                "no hard negatives were mined: every candidate was filtered out, for the reasons above, and true pairs alone teach a "
                "cross-encoder to call everything a match. Loosen negatives.margin, perc_pos, rank_min or drop_matches_at, raise "
                "negatives.pool_top_k, or take negatives.fill_with_easy=true; under another name=, for this folder has this configuration"
            )
        self._tables = as_hard_tables(self.job, tables)
        self.state = replace(self.state, mined_at_step=0, negatives=" ".join(table.name for table in tables.values()))
        for form, (_, report) in mined.items():
            self.write("mining", {"form": form} | report.as_record() | {"seconds": time.perf_counter() - started})

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
            parts=Parts(1, self.config.train.random_crop_min_area, self.config.data.jpeg_at_scale, job.pixels),
        )
        return builder, self.config.train.max_steps

    def step_record(self, outcome: MatchResult) -> tuple[dict[str, Any], list[Event]]:
        """The pairs of the step and what a constant answer gets on them; a warning when the running loss comes to be that."""
        was_named, constant = self.running.named, constant_loss(outcome.num_true, outcome.num_false)
        if not outcome.skipped:
            self._follow(self.running.after(outcome.loss, constant))
        record = {
            "constant_loss": constant,
            "gap": outcome.gap,
            **{f"num_{kind.name.lower()}": count for kind, count in outcome.num_pairs.items()},
            "shortfall": outcome.shortfall,
        }
        if self.state.step == 1:
            self.job.log(
                f"before the first update the loss is {outcome.loss:.4f}; a cross-encoder that answers the same to every pair gets "
                f"{constant:.4f} at {outcome.num_true} true to {outcome.num_false} false pairs"
                + (f" ({outcome.num_pairs[PairKind.EASY]} of them easy)" if outcome.num_pairs[PairKind.EASY] else "")
            )
        if not self.running.named or was_named:  # named again only after the running loss has left it
            return record, []
        loss, constant = self.running.means
        warning = f"warning: {loss_warning(self.running, outcome.num_true, outcome.num_false)}"
        return record, [("constant_answer", {"seen_in": "loss", "loss": loss, "constant_loss": constant}, warning)]

    def largest_batch(self) -> MatchBatch:
        """This process's share of a step with every pair that is asked for."""
        return largest_batch(self.job)

    def evaluate(self) -> Evaluation:
        """Rerank the retriever's top-K of val with the cross-encoder as it is now."""
        job, val = self.job, self.job.val_set
        assert val is not None
        stage = self._retrieved()
        pairs = candidate_lists([stage.rankings[direction] for direction in DIRECTIONS], self.config.evaluation.top_k).num_pairs
        with self.side_bar("evaluating", pairs, "pair") as progress:
            found = measure_cross_encoder(job, val, stage, progress)
        alone = " / ".join(f"{100 * self._retriever_values[direction]['R@1']:.2f}" for direction in DIRECTIONS)
        line: dict[str, Any] = {
            "split": val.split,
            **{direction: found.values[direction] for direction in DIRECTIONS},
            "mean_R@1": mean_recall_at_1(found.values),
            "miner_mean_R@1": mean_recall_at_1(self._retriever_values),
            "score_std": found.score_std,
            "seconds": found.seconds,
        }
        events: list[Event] = []
        if found.score_std < LEAST_SCORE_STD:
            spread = f"the match logits of all pairs scored on {val.split} differ by {found.score_std:.1e} (standard deviation)"
            warning = f"warning: constant answer: {spread}. {REMEDY}"
            events = [("constant_answer", {"seen_in": "scores", "score_std": found.score_std}, warning)]
        return Evaluation(line=line, note=f" (the retriever alone {alone})", events=events)

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

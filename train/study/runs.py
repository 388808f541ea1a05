"""The runs of a study: each a job in a process of its own, several at once; what is finished is not run again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.errors import UserError
from eval.search.ranking import DIRECTIONS
from train.config.job import JobConfig
from train.config.reranker import RerankerConfig
from train.engine.folder import report_folder
from train.reranker.finish import MEASURED

_LAST_LETTERS = 2000


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run: the overrides that make it, its system and seed, and its folder."""

    system: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether it ended with its report."""
        return (self.folder / "finished.json").exists()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run left.

    Attributes:
        stage: of the report that is measured: SigLIP's, or what its top-K is once the tuned cross-encoder has reranked it.
        batch_size: images of a step.
        queries: rows of queries.parquet of the stage.
        lines: of metrics.jsonl.
        report: report.json.
    """

    planned: Planned
    stage: str = "tuned"
    batch_size: int
    queries: pa.Table
    lines: list[dict[str, Any]]
    report: dict[str, Any]

    @classmethod
    def read(cls, planned: Planned, config: JobConfig | RerankerConfig) -> "Result":
        """Of a finished run; config: of its system, for the split that it was measured on."""
        folder = planned.folder / "eval" / report_folder(config).name
        table = pq.read_table(folder / "queries.parquet")
        lines = [json.loads(line) for line in (planned.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        stage = MEASURED if isinstance(config, RerankerConfig) else cls.stage
        queries = table.filter(pc.equal(table["stage"], stage))
        return cls(planned=planned, stage=stage, batch_size=config.train.batch_size, queries=queries, lines=lines, report=report)

    @property
    def chosen_step(self) -> int:
        """The step whose weights were measured; 0: those of the base, which no later ones were better than."""
        return max((line["step"] for line in self.lines if line["event"] == "eval" and line["best"]), default=self.num_steps)

    @property
    def num_steps(self) -> int:
        """Optimizer steps taken."""
        return max(line["step"] for line in self.lines if line["event"] == "step")

    @property
    def seconds(self) -> float:
        """Of steps and mining; evaluations are the same in every system."""
        return float(sum(line["seconds"] for line in self.lines if line["event"] in ("step", "mining")))

    @property
    def mined_per_image(self) -> float:
        """Mined captions of an image in a step, or hard negatives of a cross-encoder's; mean over all steps."""
        steps = [line for line in self.lines if line["event"] == "step"]
        num_mined = sum(line.get(key, 0) for line in steps for key in ("num_mined", "num_hard_caption", "num_hard_image"))
        return num_mined / (len(steps) * self.batch_size)

    def recall_at(self, k: int) -> dict[str, float]:
        """R@K of each direction, and of "both" their mean."""
        stage = self.report["stages"][self.stage]
        found = {direction: float(stage[direction][f"R@{k}"]) for direction in DIRECTIONS}
        return found | {"both": sum(found.values()) / len(found)}

    def retention(self) -> dict[str, float]:
        """Mean R@1 on each retention set, less the base's."""
        found = {}
        for watched in self.report.get("watch") or ():
            base, tuned = (watched["stages"][stage] for stage in ("base", "tuned"))
            found[watched["name"]] = sum(tuned[d]["R@1"] - base[d]["R@1"] for d in DIRECTIONS) / 2
        return found

    def near_miss(self) -> float | None:
        """Share of a choice set's examples whose true caption scores best (of pairs: both captions and both images), mean over the sets;
        None without one."""
        figures = [choices["stages"]["tuned"]["overall"] for choices in self.report.get("choices") or ()]
        values = [found.get("accuracy", found.get("group_score"))["value"] for found in figures]
        return sum(values) / len(values) if values else None


def carry_out(config: str, planned: Sequence[Planned], *, at_once: int, threads: int, say: Callable[[str], None]) -> None:
    """Run what is not finished; a run that was interrupted goes on where it was.

    Args:
        config: YAML file common to all.
        threads: of each run.

    Raises:
        UserError: a run failed; the others that were under way are stopped, with their checkpoints.
    """
    waiting = [each for each in planned if not each.is_finished]
    num_done, under_way = len(planned) - len(waiting), dict[int, tuple[Planned, subprocess.Popen[bytes]]]()
    if num_done:
        say(f"{num_done} of {len(planned)} runs are finished already")
    try:
        while waiting or under_way:
            for place in range(at_once):
                if waiting and place not in under_way:
                    under_way[place] = waiting[0], _start(config, waiting[0], threads, place)
                    del waiting[0]
            for place, (each, process) in list(under_way.items()):
                if process.poll() is None:
                    continue
                del under_way[place]
                if process.returncode or not each.is_finished:
                    log = _log(each).read_text(encoding="utf-8", errors="replace")
                    raise UserError(f"{each.folder.name} ended with exit code {process.returncode} ({_log(each)}):\n{log[-_LAST_LETTERS:]}")
                num_done += 1
                say(f"{num_done} of {len(planned)} runs done: {each.folder.name}")
            time.sleep(0.2)
    finally:
        for _, process in under_way.values():
            process.terminate()
        for _, process in under_way.values():
            process.wait()


def _log(planned: Planned) -> Path:
    return planned.folder.parent / f"{planned.folder.name}.log"


def _start(config: str, planned: Planned, threads: int, place: int) -> "subprocess.Popen[bytes]":
    """Start a run; with several GPUs, each place has one."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if gpus := _gpus():
        environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    planned.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(_log(planned), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "train", config, *planned.overrides], env=environment, stdout=log, stderr=log, start_new_session=True
        )


def usual_places() -> int:
    """Runs side by side where nobody says how many: one on each GPU; without one two, as memory may not hold one for each core."""
    return len(_gpus()) or min(2, os.cpu_count() or 1)


def _gpus() -> list[str]:
    """Names of the visible GPUs, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]

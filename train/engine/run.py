"""What the loop knows of the run it goes through, whichever kind of run it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator

from eval.dataset.leakage import Leakage
from eval.processes import Processes
from train.config.run import RunConfig
from train.engine.distributed import SharedFolder
from train.optim.optimizer import Trainable


class RunJob(Protocol):
    """What the loop asks of a job, of whatever kind: `train.siglip.job.Job`, `train.reranker.job.RerankerJob`."""

    @property
    def config(self) -> RunConfig:
        """What is asked for."""

    @property
    def folder(self) -> Path:
        """runs/NAME."""

    @property
    def accelerator(self) -> Accelerator:
        """Device and precision."""

    @property
    def processes(self) -> Processes:
        """Those that share the run."""

    @property
    def say(self) -> Callable[[str], None]:
        """Prints a line on the main process."""

    @property
    def tuned(self) -> Trainable:
        """The model under training."""

    @property
    def optimizer(self) -> torch.optim.AdamW:
        """What updates it."""

    @property
    def base(self) -> str:
        """The checkpoint it started from, by name."""

    @property
    def data_sha256(self) -> str:
        """What is trained on."""

    @property
    def data_place(self) -> str:
        """Where that comes from, in words."""

    @property
    def leakages(self) -> list[Leakage]:
        """What the splits share."""

    @property
    def shared(self) -> SharedFolder:
        """The run's folder, for every process to read."""


class StepOutcome(Protocol):
    """What the loop asks of a step's result."""

    @property
    def loss(self) -> float:
        """Over all processes."""

    @property
    def num_replaced(self) -> int:
        """Pictures replaced because they do not decode, of all processes."""

    @property
    def stop_asked(self) -> bool:
        """Whether any process was told to stop."""

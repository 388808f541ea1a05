"""Export folders: written whole or not at all, from the best, the last or a numbered checkpoint."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import PretrainedConfig

from eval.atomic import claimed, hash_file, replace_files, replaced_folder
from eval.encoder.sealed import seal, sealed_hashes, verify
from eval.encoder.weights import not_finite
from eval.errors import NotFinite, UserError
from eval.report.calibration import FILE as CALIBRATION_FILE
from eval.report.report import read_report
from train.engine.card import CARD
from train.engine.checkpoint import Checkpoints, NoReadableCheckpoint, State
from train.engine.folder import check_checkpoints, check_replaceable, read_ended, report_folder
from train.optim.optimizer import Trainable

if TYPE_CHECKING:
    from train.config.run import LoopConfig, RunConfig

WEIGHTS = "model.safetensors"
TrainableModel = TypeVar("TrainableModel", bound=Trainable)


def write_plain(kind: Any, config: Any, state: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a transformers model of this kind with these float32 weights.

    Args:
        dtype: what they are rounded to.

    Raises:
        NotFinite: one is not finite, or not in this dtype; nothing is written.
        OSError: it cannot be written.
    """
    if broken := not_finite(state.items()):
        raise NotFinite(f"{len(broken)} weight(s) are not finite, e.g. {broken[0]}: not exported. Export an earlier checkpoint")
    state = {name: value.to(dtype) for name, value in state.items()}
    if broken := not_finite(state.items()):
        raise NotFinite(f"{len(broken)} weight(s) are beyond {dtype}, e.g. {broken[0]}: not exported. Leave this precision out")
    with torch.device("meta"):
        plain = kind(copy.deepcopy(config))
    plain = plain.to_empty(device="cpu").to(dtype)
    plain.load_state_dict(state, assign=True)
    plain.config.dtype = dtype
    if dtype != torch.float32:
        for part in vars(plain.config).values():  # of each tower
            if isinstance(part, PretrainedConfig):
                part.dtype = dtype
    plain.save_pretrained(folder)


@contextmanager
def replaced_export(folder: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """A folder to write an export into; on the way out it gets its manifest.json, which the card is not in, for people edit it, and takes
    the name `folder`, where only an earlier export is replaced. A calibration of the same weights there stays.

    Args:
        num_bytes: of the weights, for the message of a full disk.

    Raises:
        UserError: the folder holds something else, which would be lost.
        OSError: it cannot be written; it names a file.
    """
    with claimed(folder):
        check_replaceable(folder)
        with replaced_folder(folder, num_bytes) as temporary:
            yield temporary
            seal(temporary, without=[CARD])
            calibration = folder / CALIBRATION_FILE
            if calibration.is_file() and sealed_hashes(folder).get(WEIGHTS) == sealed_hashes(temporary)[WEIGHTS]:
                shutil.copy(calibration, temporary)


def write_card(folder: Path, card: str) -> None:
    """Replace the card of an export, by a rename; its manifest does not name the card.

    Raises:
        OSError: it cannot be written.
    """
    replace_files({folder / CARD: card})


def report_on(config: RunConfig, export: Path) -> dict[str, Any] | None:
    """The record of a finished run's final report, if it is on the very weights of an export and as it was written; else None."""
    path, of_run = report_folder(config) / "report.json", sealed_hashes(config.run_folder / "export").get(WEIGHTS)
    if of_run is None or sealed_hashes(export).get(WEIGHTS) != of_run:
        return None
    try:
        expected = read_ended(config)["reports_sha256"][path.relative_to(config.run_folder).as_posix()]
        return read_report(path.parent) if hash_file(path) == expected else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):  # not finished, without a split for it, or damaged
        return None


def chosen_checkpoint(config: RunConfig, which: str) -> tuple[Checkpoints, State, int]:
    """(checkpoints of a run, its newest state, step of the best, the last or a numbered checkpoint, which is whole).

    Raises:
        UserError: the run or the checkpoint is not there, damaged, or of another configuration.
    """
    check_checkpoints(config)
    checkpoints = Checkpoints(config.run_folder / "checkpoints")
    found = checkpoints.newest()
    if found is None:
        raise NoReadableCheckpoint(f"{checkpoints.folder}: no checkpoints here; is it the folder of a run (runs/NAME)?")
    newest = found[0]
    if which in ("best", "last"):
        step = newest.step if which == "last" else newest.chosen_step
    elif which in (numbers := {str(step): step for step in checkpoints.steps()}):
        step = numbers[which]
    else:
        raise UserError(f"{config.run_folder}: expected best, last or one of the steps {checkpoints.steps()}; found {which!r}")
    if step != newest.step and (fault := verify(checkpoints.path(step))):
        raise NoReadableCheckpoint(f"{checkpoints.path(step)} is damaged: {fault}")
    return checkpoints, newest, step


def load_chosen(config: RunConfig, which: str, base: str, build: Callable[[], TrainableModel]) -> tuple[TrainableModel, int, State]:
    """(the model with the weights of the best, the last or a numbered checkpoint, its step, the run's newest state), on the CPU.

    With train.ema_decay these are the averages, as in evaluations.

    Args:
        base: the checkpoint that the run started from.
        build: the model made of it, or the one that is in memory.

    Raises:
        UserError: the run or the checkpoint is not there, or damaged; or the base has changed.
    """
    checkpoints, newest, step = chosen_checkpoint(config, which)
    tuned = build()
    newest.check_base(base, config.run_folder, tuned)
    checkpoints.load_evaluated(step, tuned)
    return tuned, step, newest


def average_line(train: LoopConfig) -> str:
    """The line of a model card on the average that the weights are; empty without one."""
    return "" if train.ema_decay is None else f"- Weights are their moving average over the steps (EMA), of decay {train.ema_decay:g}.\n"


def plain_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights as a model without adapters has them, float32 on the CPU, merged in copies; the model itself is left as it is."""
    layers = {name: layer for name, layer in module.named_modules() if hasattr(layer, "base_layer") and hasattr(layer, "merge")}
    if not layers:
        return {name: value.detach().float().cpu().contiguous() for name, value in module.state_dict().items()}
    # Merging and unmerging in place would leave rounding behind; so what is merged is made from copies.
    state = {
        name.replace(".base_layer.", "."): value.detach().float().cpu().clone()
        for name, value in module.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in layers.items():
        state[f"{name}.weight"] += layer.get_delta_weight("default").detach().float().cpu()
    return state

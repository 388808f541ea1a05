"""Checkpoints that survive a kill at any moment: written aside, hashed, committed by a rename; read only if every byte is right.

checkpoints/step-N/ holds weights.safetensors (what trains), optimizer.safetensors (the optimizer's state), average.safetensors (the
moving average of what trains, where train.ema_decay asks for it), state.json, negatives.parquet where mined captions are in force, and
manifest.json with the SHA-256 of each. No pickle, and no random state: order, captions, crops and dropout follow from (seed, step).
Tensors are copied at once, and written by a thread while steps go on.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from eval.atomic import commit_folder, folder_aside, remove_folder
from eval.encoder.identity import Identity, begun_with, check_identity
from eval.encoder.sealed import seal, sealed_hashes, verify
from eval.encoder.weights import not_finite
from eval.errors import NotFinite, UserError, WriteError
from eval.processes import Processes, brought
from eval.sharded import whole
from train.optim.ema import WeightAverage
from train.optim.fsdp import placed
from train.optim.loss_scale import LossScale
from train.optim.optimizer import Trainable

_NAME = re.compile(r"^step-(\d+)$")
_UNDER_WAY = re.compile(r"/\.step-\d+\.[0-9a-f]+\.tmp/")
_AVERAGE = "average.safetensors"
_LATER_KEYS = {"stopped_by", "loss_scale", "matcher_sha256", "further", "base_identity", "config", "metrics_sha256", "num_updates_before"}
"""Of state.json, which the first checkpoints did not have."""


class NoReadableCheckpoint(UserError):
    """Checkpoints are there, but none can be read. Exit code 3."""

    exit_code = 3


@dataclass(frozen=True, kw_only=True)
class State:
    """What a run is at a step, next to weights and optimizer state.

    Attributes:
        step: optimizer steps taken.
        num_metrics_lines: lines of metrics.jsonl that belong to it; later ones are of a future that did not happen.
        evaluated: whether the evaluation due at this step is among them.
        mined_at_step: step whose weights the negatives in force were mined with; None without.
        negatives: name of the table in force; None without.
        best_step, best_score: the best checkpoint so far by mean R@1 on val; None before any evaluation.
        num_replaced: pictures replaced so far because they do not decode.
        base_sha256: weights the run started from.
        data_sha256: data it trains on.
        stopped_by: the retention set whose drop ended the run at this step; None otherwise.
        loss_scale: fp16's; None in the other precisions.
        matcher_sha256: fingerprint of the cross-encoder of mining; None without one.
        metrics_sha256: of the lines of metrics.jsonl that belong to it; None in checkpoints of earlier versions.
        further: additional state of a run of another kind than tuning SigLIP (train/reranker/loop.py); None: nothing.
        base_identity: config, image processor and tokenizer it started from; None: of an earlier version.
        config: the keys that decide what is learnt, with their values (train/engine/folder.py); None: of an earlier version.
        num_updates_before: updates that the optimizer state knows from the checkpoint of another run that this one began at.
    """

    step: int = 0
    num_metrics_lines: int = 0
    evaluated: bool = False
    mined_at_step: int | None = None
    negatives: str | None = None
    best_step: int | None = None
    best_score: float | None = None
    num_replaced: int = 0
    base_sha256: str
    data_sha256: str
    stopped_by: str | None = None
    loss_scale: LossScale | None = None
    matcher_sha256: str | None = None
    metrics_sha256: str | None = None
    further: dict[str, Any] | None = None
    base_identity: Identity | None = None
    config: dict[str, Any] | None = None
    num_updates_before: int = 0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "State":
        """Read back from JSON; raises TypeError or KeyError where it does not fit. Later keys may be missing: of an older run."""
        known = {field.name: record[field.name] for field in fields(cls) if field.name not in _LATER_KEYS or field.name in record}
        scale = known.get("loss_scale")
        return cls(**known | {"loss_scale": LossScale(**scale) if scale is not None else None})

    def check_base(self, base: str, folder: Path, tuned: Trainable) -> None:
        """Refuse a base that is not the one the run was begun with.

        Args:
            base, folder: its name and the run's folder, for the message.
            tuned: made of the base as it is now.

        Raises:
            UserError: naming what differs.
        """
        check_identity(base, str(folder), self.base_identity, tuned.base_identity)
        if self.base_sha256 != tuned.base_sha256:
            moved = begun_with(base, self.base_identity)
            raise UserError(f"{base} has other weights than when {folder} was begun.{moved} Bring them back, or give the run another name=")

    @property
    def chosen_step(self) -> int:
        """Step of the checkpoint that is exported: the best so far, or the newest where none was measured."""
        return self.step if self.best_step is None else self.best_step

    @property
    def num_updates(self) -> int:
        """Updates that the optimizer state knows: the run's own, and those of the run that this one began at."""
        return self.num_updates_before + self.num_own_updates

    @property
    def num_own_updates(self) -> int:
        """Updates of the weights in this run: all steps but those that fp16 skipped."""
        return self.step - (self.loss_scale.num_skipped if self.loss_scale is not None else 0)


class Checkpoints:
    """The checkpoints/ folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step-{step}"

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending; it may still be damaged."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.match(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def save(
        self,
        state: State,
        tuned: Trainable,
        optimizer: torch.optim.Optimizer,
        negatives_file: Path | None,
        *,
        average: WeightAverage | None = None,
    ) -> None:
        """Commit a checkpoint before anything goes on; as `gather` and `commit`.

        Raises:
            OSError: it cannot be written; what was there before is untouched.
        """
        if (gathered := self.gather(state, tuned, optimizer, negatives_file, average=average)) is not None:
            self.commit(gathered)

    def gather(
        self,
        state: State,
        tuned: Trainable,
        optimizer: torch.optim.Optimizer,
        negatives_file: Path | None,
        *,
        average: WeightAverage | None = None,
        memory: "HostMemory | None" = None,
        writes: bool = True,
    ) -> "Gathered | None":
        """What a checkpoint of this moment holds; None on a process that does not write.

        Args:
            average: of the weights, where the run has one.
            memory: of what is copied, if the machine has room for it, so that weights can change before the checkpoint is written; None:
                they must not.
            writes: false on all but one of the processes that share out the weights (train/optim/fsdp.py): each gives its parts, one
                writes.
        """
        named: dict[str, dict[str, torch.Tensor]] = {
            "weights.safetensors": dict(tuned.trainable()),
            "optimizer.safetensors": dict(_optimizer_state(tuned, optimizer)),
        }
        if average is not None:
            named[_AVERAGE] = dict(average.named())
        kept = memory if memory is not None and writes and memory.has_room(named) else None
        files: dict[str, dict[str, Callable[[], torch.Tensor]]] = {file: {} for file in named}
        for file, tensors in named.items():
            for name, tensor in tensors.items():
                gathered = whole(tensor.detach())
                if writes:
                    files[file][name] = _on_host(gathered, kept, f"{file} {name}")
        return Gathered(state=state, files=files, negatives_file=negatives_file, is_copy=kept is not None) if writes else None

    def commit(self, gathered: "Gathered") -> None:
        """Write a checkpoint; one of the same step is replaced, unless it is whole and says the same.

        The weights of a step are always the same, but not what is known of it: a run begins with a checkpoint, and has yet to learn that it
        is the best so far. Files of tensors that are there are taken over by a hard link, where the file system has them.

        Raises:
            OSError: it cannot be written; what was there before is untouched.
        """
        state, target = gathered.state, self.path(gathered.state.step)
        found = dict[str, str]()
        with suppress(OSError, ValueError, KeyError, TypeError):
            if target.is_dir() and not verify(target):
                if self.state(state.step) == state:
                    return
                found = sealed_hashes(target)
        tensors = {file: {name: wait() for name, wait in named.items()} for file, named in gathered.files.items()}
        num_bytes = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
        with folder_aside(target, num_bytes) as temporary:
            known = {}
            for file, named in tensors.items():
                if file in found and _link(target / file, temporary / file):
                    known[file] = found[file]
                else:
                    save_file(named, temporary / file)
            if gathered.negatives_file is not None:
                shutil.copyfile(gathered.negatives_file, temporary / "negatives.parquet")
            (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
            seal(temporary, known)
            commit_folder(temporary, target)

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints after a step: damaged ones that were skipped. Left there, they would count among the newest kept."""
        for later in self.steps():
            if later > step:
                remove_folder(self.path(later))

    def prune(self, keep: int, best_step: int | None) -> None:
        """Remove all but the newest `keep` and the best."""
        steps = self.steps()
        for step in steps[:-keep]:
            if step != best_step:
                remove_folder(self.path(step))

    def newest(self) -> tuple[State, list[str]] | None:
        """(state of the newest checkpoint that is whole, warnings about newer ones that are not); None when there is none at all.

        Raises:
            NoReadableCheckpoint: there are some, and none is whole.
        """
        warnings: list[str] = []
        for step in reversed(self.steps()):
            fault = verify(self.path(step))
            if not fault:
                try:
                    return self.state(step), warnings
                except (OSError, ValueError, KeyError, TypeError) as error:
                    fault = f"state.json: {error!r}"
            warnings.append(f"{self.path(step)} is damaged and was skipped: {fault}")
        if warnings:
            lines = "\n  ".join(warnings)
            raise NoReadableCheckpoint(
                f"no readable checkpoint to resume from:\n  {lines}\nMove {self.folder} away to start from the beginning"
            )
        return None

    def state(self, step: int) -> State:
        """State of a step's checkpoint."""
        return State.from_record(json.loads((self.path(step) / "state.json").read_text(encoding="utf-8")))

    def sealed_states(self) -> Iterator[tuple[Path, int, State]]:
        """(folder, step by its name, state) of every checkpoint whose state has the bytes that were written; nothing else of it is read."""
        for step in self.steps():
            folder = self.path(step)
            with suppress(OSError, ValueError, KeyError, TypeError):
                if not verify(folder, ["state.json"]):
                    yield folder, step, self.state(step)

    def load_weights(self, step: int, tuned: Trainable) -> None:
        """Put a checkpoint's weights, as they were trained, into the model.

        Raises:
            NoReadableCheckpoint: they belong to another model.
            NotFinite: one is not finite.
        """
        self._load(step, "weights.safetensors", dict(tuned.trainable()))

    def load_evaluated(self, step: int, tuned: Trainable) -> None:
        """Put into the model what was evaluated at a checkpoint: the averages of its weights where the run has them, else its weights.

        Raises:
            NoReadableCheckpoint, NotFinite: as `load_weights`.
        """
        name = _AVERAGE if (self.path(step) / _AVERAGE).exists() else "weights.safetensors"
        self._load(step, name, dict(tuned.trainable()))

    def load_average(self, step: int, average: WeightAverage) -> None:
        """Go on with a checkpoint's averages.

        Raises:
            UserError: it has none: of a run begun without.
            NoReadableCheckpoint, NotFinite: as `load_weights`.
        """
        if not (self.path(step) / _AVERAGE).exists():
            raise UserError(
                f"{self.path(step)} has no averages of its weights: that run was begun without train.ema_decay. Give train.ema_decay=null, "
                "or take another name="
            )
        self._load(step, _AVERAGE, dict(average.named()))
        average.num_updates = self.state(step).num_own_updates

    def _load(self, step: int, name: str, expected: dict[str, Any]) -> None:
        """Copy the tensors of a checkpoint's file into those of the same names."""
        saved = load_file(self.path(step) / name)
        differing = saved.keys() ^ expected.keys() | {name for name in saved.keys() & expected if saved[name].shape != expected[name].shape}
        if differing:
            raise NoReadableCheckpoint(f"{self.path(step)} holds the weights of another model; differing: {sorted(differing)[:5]}")
        if broken := not_finite(saved.items()):
            raise NotFinite(
                f"{self.path(step)}: {len(broken)} weight(s) are not finite, e.g. {broken[0]}. There are checkpoints of the steps "
                f"{self.steps()}: begin at an earlier one, name=NEW train.begin_at=... (docs/resuming.md)"
            )
        with torch.no_grad():
            for key, tensor in expected.items():
                tensor.copy_(placed(saved[key], tensor))

    def load_optimizer(self, step: int, tuned: Trainable, optimizer: torch.optim.Optimizer) -> None:
        """Put a checkpoint's optimizer state into the optimizer."""
        num_updates = self.state(step).num_updates
        if num_updates == 0:
            return
        saved = load_file(self.path(step) / "optimizer.safetensors")
        parameters = dict(tuned.trainable())
        record = optimizer.state_dict()
        keys_of = {name: _state_keys(group) for group in optimizer.param_groups for name in group["names"]}
        if any(f"{key}.{name}" not in saved for name, keys in keys_of.items() for key in keys):
            raise UserError(f"{self.path(step)} has the state of another optimizer: take its train.optimizer, or begin at its export")
        record["state"] = {
            index: {"step": torch.tensor(float(num_updates))} | {key: placed(saved[f"{key}.{name}"], parameters[name]) for key in keys}
            for index, (name, keys) in enumerate(keys_of.items())
        }
        optimizer.load_state_dict(record)


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a checkpoint holds, in the host's memory or on its way there from a GPU.

    Attributes:
        files: file -> name -> what waits for the tensor, whole, on the CPU.
        negatives_file: the table in force; None: there is none.
        is_copy: whether weights and optimizer state may change before it is written.
    """

    state: State
    files: dict[str, dict[str, Callable[[], torch.Tensor]]]
    negatives_file: Path | None
    is_copy: bool


_LOCKED = 2
"""Page-locked memory of a tensor at most, over its size: torch rounds each block up to a power of two, and keeps it for the next."""


class HostMemory:
    """Where the tensors of a checkpoint are copied on a CPU; kept for the next one, for memory that is new costs more than the copy."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def has_room(self, files: Mapping[str, Mapping[str, torch.Tensor]]) -> bool:
        """Whether a copy of these tensors leaves the machine a tenth of the memory that is free now."""
        missing = sum(
            tensor.nbytes * (1 if tensor.device.type == "cpu" else _LOCKED)
            for file, named in files.items()
            for name, tensor in named.items()
            if f"{file} {name}" not in self._kept
        )
        return missing == 0 or missing < 0.9 * _free_bytes()

    def locked(self, place: str) -> None:
        """Note that torch has page-locked memory for a GPU's tensor from now on."""
        self._kept[place] = torch.empty(0)

    def copied(self, place: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy that stays until the next of the same place."""
        if place not in self._kept:
            self._kept[place] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return self._kept[place].copy_(tensor)


def _on_host(tensor: torch.Tensor, memory: HostMemory | None, place: str) -> Callable[[], torch.Tensor]:
    """What waits for a tensor on the CPU: of a GPU's a copy that begins here, of the CPU's one in `memory`; without it, what is there."""
    if memory is not None and tensor.device.type != "cpu":
        memory.locked(place)
        return brought(tensor)
    found = tensor.cpu().contiguous() if memory is None else memory.copied(place, tensor)
    return lambda: found


_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use, and what of the use can be had again, of versions 2 and 1; the last is a line of memory.stat. Source: Linux,
admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst."""


def _free_bytes() -> float:
    """What can be had of memory now, of the machine and of the container that this process is in; infinity where nothing says it."""
    free = float("inf")
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    for limit, used, again in _CGROUP_FILES:
        with suppress(OSError, ValueError, StopIteration):
            most, now = (int((_CGROUP / name).read_text(encoding="utf-8")) for name in (limit, used))  # "max" is no limit
            lines = (_CGROUP / used).with_name("memory.stat").read_text(encoding="utf-8").splitlines()
            free = min(free, most - now + next(int(line.split()[1]) for line in lines if line.startswith(f"{again} ")))
    return free


class Writer:
    """A thread in which checkpoints are written, one at a time.

    Attributes:
        memory: of the one that is being written.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        """on_failure: called in the thread when something cannot be written; `wait` raises it."""
        self.memory = HostMemory()
        self._on_failure = on_failure
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin to write; as `wait`, which it calls first."""
        self.wait()
        self._pending = self._threads.submit(self._run, write)

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
            WriteError: it could not be, for an OSError.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except OSError as error:
                raise WriteError(f"could not write a checkpoint: {error}") from error

    def close(self) -> BaseException | None:
        """Wait for what is being written, and let memory and thread go; what could not be, where nobody has waited for it."""
        pending, self._pending = self._pending, None
        self._threads.shutdown()
        self.memory = HostMemory()
        return None if pending is None else pending.exception()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException:
            self._on_failure()
            raise


def _close_in_child() -> None:
    """A loader's worker that inherits a file of a checkpoint under way would keep its room on the disk after the checkpoint is removed."""
    with suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if _UNDER_WAY.search(os.readlink(f"/proc/self/fd/{number}")):
                    os.close(int(number))


os.register_at_fork(after_in_child=_close_in_child)


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name; False: this file system cannot."""
    with suppress(OSError):
        os.link(source, target)
        return True
    return False


def _state_keys(group: dict[str, Any]) -> tuple[str, ...]:
    """What the optimizer keeps of each parameter of a group (train/optim/muon.py)."""
    return ("momentum",) if group["muon"] else ("exp_avg", "exp_avg_sq")


def _optimizer_state(tuned: Trainable, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in tuned.trainable():
        state = optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq", "momentum"):
            if key in state:
                yield f"{key}.{name}", state[key]


def newest_of_main(checkpoints: Checkpoints, processes: Processes) -> tuple[State, list[str]] | None:
    """Checkpoints.newest() of the main process, on every process: another machine may see an older listing of the folder, or none.

    Raises:
        NoReadableCheckpoint: on every process; see Checkpoints.newest.
    """

    def newest() -> tuple[dict[str, Any], list[str]] | None:
        found = checkpoints.newest()
        return None if found is None else (asdict(found[0]), found[1])

    found = processes.from_main(newest)
    return None if found is None else (State.from_record(found[0]), found[1])

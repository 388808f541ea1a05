"""Where a run's numbers go: metrics.jsonl always, and the trackers that are asked for, which are never fatal."""

import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from eval.atomic import replace_files
from eval.errors import naming
from eval.metrics.stage_metrics import METRICS
from eval.search.ranking import DIRECTIONS
from train.config.run import RunConfig, WandbConfig

AXIS = "train/step"
CURVES = "curves.png"
FIGURE_COLUMNS = ("stage", "direction", *METRICS)
TRACKED = "tracking.json"
"""In a run's folder: the run's id at wandb."""


class MetricsLog:
    """metrics.jsonl: one JSON object a line, each with `event` and `step`; written by the main process alone.

    A line is complete when its newline is there. On resume the lines beyond the checkpoint move to metrics.replaced.jsonl. A checkpoint
    remembers the hash of the lines before it, so that damage to them is noticed.

    Attributes:
        damage: what was found to be wrong with the lines on resume, in words; empty: nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._replaced = folder / "metrics.jsonl", folder / "metrics.replaced.jsonl"
        self._file: Any = None
        self.num_lines, self.damage = 0, ""
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the lines so far, as they were written."""
        return self._hash.hexdigest()

    def open_at(self, num_lines: int, sha256: str | None = None) -> int:
        """Open for appending after `num_lines` lines; later ones move away, a torn last one is dropped. Returns how many moved.

        Args:
            sha256: what the lines had when they were written; None: a checkpoint of an earlier version, which does not say.
        """
        raw = self._path.read_bytes() if self._path.exists() else b""
        lines = [line + b"\n" for line in raw.split(b"\n")[:-1]]
        kept, beyond = lines[:num_lines], lines[num_lines:]
        with naming(self._path):
            if beyond:
                with self._replaced.open("ab") as file:
                    file.writelines(beyond)
                    file.flush()
                    os.fsync(file.fileno())
            if b"".join(kept) != raw:
                replace_files({self._path: b"".join(kept)})
            self._file = self._path.open("ab")
        self.num_lines = len(kept)
        self._hash = hashlib.sha256(b"".join(kept))
        if self.sha256 != sha256:
            self.damage = _damage(kept, num_lines, knows=sha256 is not None)
        return len(beyond)

    def write(self, event: str, step: int, record: dict[str, Any]) -> None:
        """Append one line and hand it to the system. JSON has no NaN and no infinity: such numbers become null."""
        line = json.dumps(_finite({"event": event, "step": step, **record}), allow_nan=False).encode() + b"\n"
        with naming(self._path):
            self._file.write(line)
            self._file.flush()
        self._hash.update(line)
        self.num_lines += 1

    def sync(self) -> None:
        """Force the lines to the disk, before a checkpoint counts on them."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with naming(self._path):
                self._file.close()


def _damage(lines: list[bytes], num_lines: int, *, knows: bool) -> str:
    """What is wrong with lines that do not have the hash they should have, or of which it is not known (`knows`)."""
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except ValueError:  # also of what is no UTF-8
            return f"holds no JSON in line {number}"
    if len(lines) < num_lines:
        return f"lacks {num_lines - len(lines)} line(s)"
    return "holds other bytes in its lines" if knows else ""


class Trackers:
    """Mirrors a run to the trackers it names, through accelerate's classes for them; on the main process.

    Each is started, and fails, alone: whatever goes wrong with one is said in a line, and the run goes on without it. Their axis is the
    number of the training step, train/step; a resumed run goes on in the same run of each (`TRACKED`).
    """

    def __init__(self, config: RunConfig, warn: Callable[[str], None], *, step: int = 0, is_old: bool = False) -> None:
        """Start them.

        Args:
            warn: says a line.
            step: that the run goes on from; what TensorBoard holds of later ones is no longer shown.
            is_old: the run was begun by a version that called it by its name at wandb, if it knows no other id.
        """
        self._warn, self._trackers = warn, dict[str, Any]()
        if not config.trackers:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in config.trackers:
            with self._guarded(name), _quiet(name):
                project, keys = _tracker_arguments(name, config, step, is_old)
                tracker = LOGGER_TYPE_TO_CLASS[name](project, **keys)
                tracker.start()
                self._trackers[name] = tracker
        if (wandb := self._trackers.get("wandb")) is not None:
            with self._guarded("wandb"):
                wandb.tracker.define_metric(AXIS)
                wandb.tracker.define_metric("*", step_metric=AXIS)

    def write(self, event: str, step: int, record: dict[str, Any]) -> None:
        """Mirror the numbers of one line; lists and texts stay in metrics.jsonl."""
        if not self._trackers:
            return
        place = f"{event}/{record['name']}" if event == "watch" else event  # several sets, each its own curve
        numbers = {f"{place}/{key}": value for key, value in flatten(record, "/").items() if isinstance(value, (int, float))}
        for name, tracker in list(self._trackers.items()):
            with self._guarded(name):
                if name == "wandb":  # its own count of lines never goes back, as a resumed run does
                    tracker.log(numbers | {AXIS: step})
                else:
                    tracker.log(numbers, step=step)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Show a table: of wandb and trackio one of theirs, of TensorBoard a text in Markdown."""
        for name, tracker in list(self._trackers.items()):
            with self._guarded(name):
                if name == "tensorboard":
                    lines = [columns, ["---"] * len(columns), *rows]
                    tracker.log({title: "\n".join(f"| {' | '.join(_cell(one) for one in line)} |" for line in lines)}, step=step)
                elif name == "wandb":
                    tracker.log_table(title, columns=list(columns), data=[list(row) for row in rows])
                else:
                    import trackio

                    shown = trackio.Table(columns=list(columns), data=[list(row) for row in rows])
                    tracker.log({title: shown}, step=step)

    def picture(self, title: str, path: Path, step: int) -> None:
        """Show a picture, if it is there."""
        if not path.is_file():
            return
        for name, tracker in list(self._trackers.items()):
            with self._guarded(name):
                if name == "trackio":
                    import trackio

                    tracker.log({title: trackio.Image(str(path))}, step=step)
                    continue
                import numpy as np
                from PIL import Image

                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                if name == "tensorboard":
                    tracker.log_images({title: pixels[None]}, step=step, dataformats="NHWC")
                else:
                    tracker.log_images({title: [pixels]})

    def close(self) -> None:
        """Finish the run there."""
        for name, tracker in list(self._trackers.items()):
            with self._guarded(name), _quiet(name):
                if name == "trackio":  # its run would be finished, and that be said, a second time when Python ends
                    import trackio

                    trackio.finish()
                else:
                    tracker.finish()
        self._trackers = {}

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """What a tracker raises (no key, no network, SystemExit among them) is said, and it is left out from here."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._trackers.pop(name, None)
            self._warn(f"{name} is off for the rest of this run ({type(error).__name__}: {error}); metrics.jsonl has everything")


def figure_rows(report: Mapping[str, Any]) -> list[list[Any]]:
    """The figures of a report's record as the rows of a table (FIGURE_COLUMNS); shares from 0 to 1."""
    return [
        [stage, direction, *(found[direction][metric] for metric in METRICS)]
        for stage, found in report["stages"].items()
        for direction in DIRECTIONS
    ]


def _tracker_arguments(name: str, config: RunConfig, step: int, is_old: bool) -> tuple[str, dict[str, Any]]:
    """(what accelerate's class of a tracker takes first, its further arguments)."""
    folder, known = config.run_folder, config.model_dump(mode="json")
    wandb = config.wandb or WandbConfig()
    if name == "tensorboard":
        return "", {"logging_dir": str(folder / "tensorboard"), "purge_step": step + 1}
    if name == "trackio":
        return wandb.project, {"name": config.name, "config": known, "resume": "allow"}
    keys = {"entity": wandb.entity, "mode": wandb.mode, "name": config.name, "dir": str(folder), "config": known, "resume": "allow"}
    from wandb import Settings

    keys["settings"] = Settings(init_timeout=30, silent=True)
    is_known = is_old and (folder / "wandb").is_dir()  # of a run of an earlier version, whose id was its name
    return wandb.project, keys | {"id": _run_id(folder / TRACKED, config.name if is_known else "")}


def _quiet(name: str) -> AbstractContextManager[Any]:
    """Silence for trackio, which prints where it is; wandb keeps what is printed, and is left alone."""
    return redirect_stdout(io.StringIO()) if name == "trackio" else nullcontext()


def _run_id(path: Path, default: str) -> str:
    """The id of this run at wandb: the one it got when it began, or a new one; two runs of one name are two runs there."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text(encoding="utf-8"))["wandb"])
    found = default or secrets.token_hex(4)
    with naming(path):
        replace_files({path: json.dumps({"wandb": found}) + "\n"})
    return found


def _cell(value: Any) -> str:
    """A cell of a table of Markdown."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flatten(record: dict[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested records as one: {"a": {"b": 1}} -> {"a/b": 1} with separator "/"."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, separator, f"{prefix}{key}{separator}"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat

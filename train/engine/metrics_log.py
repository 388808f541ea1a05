"""Where a run's numbers go: metrics.jsonl always, the terminal, and Weights & Biases when asked for, never fatal."""

import json
import math
import os
from pathlib import Path
from typing import Any

from eval.atomic import replace_files
from train.config.run import RunConfig


class MetricsLog:
    """metrics.jsonl: one JSON object a line, each with `event` and `step`; written by the main process alone.

    A line is complete when its newline is there. On resume the lines beyond the checkpoint move to metrics.replaced.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._replaced = folder / "metrics.jsonl", folder / "metrics.replaced.jsonl"
        self._file: Any = None
        self.num_lines = 0

    def open_at(self, num_lines: int) -> int:
        """Open for appending after `num_lines` lines; later ones move away, a torn last one is dropped. Returns how many moved."""
        kept, beyond = [], []
        if self._path.exists():
            raw = self._path.read_bytes()
            lines = raw.splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                lines.pop()
            kept, beyond = lines[:num_lines], lines[num_lines:]
            if beyond:
                with self._replaced.open("ab") as file:
                    file.writelines(beyond)
                    file.flush()
                    os.fsync(file.fileno())
            if kept != raw.splitlines(keepends=True):
                replace_files({self._path: b"".join(kept)})
        self._file = self._path.open("ab")
        self.num_lines = len(kept)
        return len(beyond)

    def write(self, event: str, step: int, record: dict[str, Any]) -> None:
        """Append one line and hand it to the system. JSON has no NaN and no infinity: such numbers become null."""
        line = json.dumps(_finite({"event": event, "step": step, **record}), allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self.num_lines += 1

    def sync(self) -> None:
        """Force the lines to the disk, before a checkpoint counts on them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class WandbMirror:
    """Mirrors numbers to Weights & Biases. Whatever goes wrong there is said once, and the mirror switches itself off."""

    def __init__(self, config: RunConfig, warn: Any) -> None:
        self._run: Any = None
        self._warn = warn
        if config.wandb is None:
            return
        try:
            import wandb

            self._run = wandb.init(
                project=config.wandb.project,
                entity=config.wandb.entity,
                mode=config.wandb.mode,
                name=config.name,
                id=config.name,
                resume="allow",
                dir=str(config.run_folder),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(init_timeout=30, silent=True),
            )
        except BaseException as error:  # no key, no network, a broken installation; wandb raises many kinds, SystemExit among them
            self._fail(error)

    def write(self, event: str, step: int, record: dict[str, Any]) -> None:
        """Mirror the numbers of one line."""
        if self._run is None:
            return
        place = f"{event}/{record['name']}" if event == "watch" else event  # several sets, each its own curve
        numbers = {f"{place}/{key}": value for key, value in flatten(record, "/").items() if isinstance(value, (int, float))}
        try:
            self._run.log(numbers | {"train_step": step})
        except Exception as error:  # with its backend gone every call raises (docs/numerics.md)
            self._fail(error)

    def close(self) -> None:
        """Finish the run there."""
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        self._run = None
        self._warn(f"wandb is off for the rest of this run ({type(error).__name__}: {error}); metrics.jsonl has everything")


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

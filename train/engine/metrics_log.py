"""Where a run's numbers go: metrics.jsonl always, the terminal, and Weights & Biases when asked for, never fatal."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from eval.atomic import replace_files
from eval.errors import naming
from train.config.run import RunConfig


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

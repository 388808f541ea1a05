"""The folder of a run: claimed by one job at a time, and continued only by the configuration that began it."""

import fcntl
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eval.atomic import replace_files
from eval.errors import UserError
from train.config.run import RunConfig
from train.config.yaml_text import YamlFault, parse_yaml
from train.engine.checkpoint import Checkpoints
from train.engine.metrics_log import flatten


def claim_folder(config: RunConfig) -> Any:
    """Make the run's folder, lock it against a second job, check the configuration against that of an earlier run, and write config.yaml.

    A folder without checkpoints or a finished report holds nothing to protect: an attempt that failed before its first step does not stand
    in the way of the next. Main process only. Returns the lock, to be kept open as long as the job runs.

    Raises:
        UserError: another job runs here, or the configuration differs.
        OSError: the folder cannot be written.
    """
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    try:
        # Not flock: the loader's workers would inherit it, and hold it for seconds after a SIGKILL of their parent.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(f"{folder} is in use by another job; wait for it, or take another name=") from None
    path, record = folder / "config.yaml", config.model_dump(mode="json")
    if not Checkpoints(folder / "checkpoints").steps() and not (folder / "finished.json").exists():
        shutil.rmtree(folder / "scratch", ignore_errors=True)
    elif path.exists():
        _check_same(path, config)
    replace_files({path: yaml.safe_dump(record, sort_keys=False)})
    return lock


def _check_same(path: Path, config: RunConfig) -> None:
    try:
        old = parse_yaml(path.read_text(encoding="utf-8"))
    except (YamlFault, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or take another name=") from None
    if not isinstance(old, dict):
        raise UserError(f"{path} holds no configuration: restore it, or take another name=")
    with suppress(ValidationError):  # completed by keys that did not exist when it was written
        old = type(config).model_validate(old).model_dump(mode="json")
    folder, flat_old, flat_new = config.run_folder, flatten(old, "."), flatten(config.model_dump(mode="json"), ".")
    free = tuple(f"{key}." for key in config.mutable_keys)
    lines = "\n  ".join(
        f"{key}: {flat_old.get(key)!r} -> {flat_new.get(key)!r}"
        for key in dict.fromkeys((*flat_old, *flat_new))
        if flat_old.get(key) != flat_new.get(key) and not f"{key}.".startswith(free)
    )
    if lines:
        raise UserError(
            f"{folder} holds a run with another configuration:\n  {lines}\n"
            f"Take another name=, remove the folder, or start from what it learnt: model.base={folder}/export"
        )


def report_folder(config: RunConfig) -> Path:
    """Where the final report lies: eval/SPLIT."""
    split = config.data.test_split or config.data.val_split or "none"
    return config.run_folder / "eval" / split


def ended(config: RunConfig, expected: Mapping[str, Any], made: Sequence[Path] = ()) -> bool:
    """True if the run ended with its export and, where there is a split for it, its final report.

    Args:
        expected: what its mark must say, for it to be what the configuration asks for.
        made: other files that must be there.
    """
    try:
        record = read_ended(config)
        files = [config.run_folder / "export" / "model.safetensors", *made]
        if config.data.test_split or config.data.val_split:
            files.append(report_folder(config) / "report.json")
        return {key: record.get(key) for key in expected} == expected and all(path.is_file() for path in files)
    except (OSError, ValueError, AttributeError):
        return False


def read_ended(config: RunConfig) -> dict[str, Any]:
    """What finished.json says; raises OSError or ValueError where there is none."""
    return json.loads((config.run_folder / "finished.json").read_text(encoding="utf-8"))


def mark_ended(config: RunConfig, record: Mapping[str, Any]) -> None:
    """Write finished.json, committed by a rename."""
    replace_files({config.run_folder / "finished.json": json.dumps(record) + "\n"})


def show_places(config: RunConfig) -> None:
    """Print where export and metrics lie."""
    print(f"export   {config.run_folder}/export")
    print(f"metrics  {config.run_folder}/metrics.jsonl")

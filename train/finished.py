"""Where a run stands when it is through: its mark, its report, its export."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config import RunConfig


def report_folder(config: RunConfig) -> Path:
    """Where the final report lies: eval/SPLIT."""
    split = config.data.test_split or config.data.val_split or "none"
    return config.run_folder / "eval" / split


def ended(config: RunConfig, expected: Mapping[str, Any], made: Sequence[Path] = ()) -> bool:
    """True if the run ended with its export and, where there is a split for it, its final report.

    Args:
        expected: what its mark must say, for it to be what the configuration asks for.
        made: further files that must be there.
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
    record: dict[str, Any] = json.loads((config.run_folder / "finished.json").read_text(encoding="utf-8"))
    return record


def mark_ended(config: RunConfig, record: Mapping[str, Any]) -> None:
    """Write finished.json, committed by a rename."""
    path = config.run_folder / "finished.json"
    temporary = path.with_name(f".finished.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def show_places(config: RunConfig) -> None:
    """Print where export and metrics lie."""
    print(f"export   {config.run_folder}/export")
    print(f"metrics  {config.run_folder}/metrics.jsonl")

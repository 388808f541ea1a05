"""Rows that were left out as asked, and the list of them next to a report."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.atomic import replace_files

MISSING = "missing file"
"""The reason of a picture that is not there, and the kind of that fault."""
BROKEN = "does not decode"
"""The kind of the other reasons."""
FILE = "skipped.jsonl"
"""In a run's folder, or next to report.json: a line a row."""


@dataclass(frozen=True)
class Skipped:
    """A row that was left out as asked: where (file and line, or row), its image (id or path), the reason, its split and its group."""

    where: str
    image: str
    reason: str
    split: str | None = None
    group: str | None = None

    @property
    def is_broken(self) -> bool:
        """True of a picture that is there and does not decode; its reason is what was wrong with it."""
        return self.reason != MISSING


def skipped_record(skipped: Sequence[Skipped]) -> dict[str, Any]:
    """What a report tells of the rows that were left out: their number, and that of each reason."""
    return {"num_rows": len(skipped), "reasons": dict(Counter(BROKEN if row.is_broken else row.reason for row in skipped))}


def skipped_in_words(record: dict[str, Any]) -> str:
    """Such as "12 rows skipped: 12 x missing file"."""
    return f"{record['num_rows']:,} rows skipped: " + ", ".join(f"{count:,} x {reason}" for reason, count in record["reasons"].items())


def write_skipped(path: str | os.PathLike[str], skipped: Sequence[Skipped]) -> None:
    """Write the list, a line a row; where nothing was left out, remove one of an earlier time.

    Raises:
        OSError: it cannot be written.
    """
    if not skipped:
        Path(path).unlink(missing_ok=True)
        return
    records = [{"where": row.where, "image": row.image, "reason": row.reason, "split": row.split} for row in skipped]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    replace_files({Path(path): text})

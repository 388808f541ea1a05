"""The files of a report."""

import os
from pathlib import Path


def report_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of report.json, queries.parquet and report.html in a folder."""
    return [Path(folder) / name for name in ("report.json", "queries.parquet", "report.html")]


def choices_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of choices.json, choices.parquet and choices.html in a folder."""
    return [Path(folder) / name for name in ("choices.json", "choices.parquet", "choices.html")]


def remove_earlier(folder: str | os.PathLike[str]) -> None:
    """Remove what an earlier evaluation wrote next to its report and this one may not write: TREC runs, MTEB results, calibration.

    Raises:
        OSError: a file cannot be removed.
    """
    for pattern in ("trec/*.run", "trec/*.qrels", "mteb/*/*.json", "calibration.json"):
        for path in Path(folder).glob(pattern):
            path.unlink()

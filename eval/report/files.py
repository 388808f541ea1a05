"""Names of the files of a report."""

import os
from pathlib import Path


def report_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of report.json, queries.parquet and report.html in a folder."""
    return [Path(folder) / name for name in ("report.json", "queries.parquet", "report.html")]


def choices_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of choices.json, choices.parquet and choices.html in a folder."""
    return [Path(folder) / name for name in ("choices.json", "choices.parquet", "choices.html")]

"""The files of a report."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote


def report_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of report.json, queries.parquet and report.html in a folder."""
    return [Path(folder) / name for name in ("report.json", "queries.parquet", "report.html")]


def choices_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of choices.json, choices.parquet and choices.html in a folder."""
    return [Path(folder) / name for name in ("choices.json", "choices.parquet", "choices.html")]


def stage_name(stage: str) -> str:
    """A stage as names of files and folders have it."""
    return quote(stage, safe="+@")


def qrels_path(folder: Path, direction: str) -> Path:
    """The ground truth of a direction in a folder of TREC files."""
    return folder / f"{direction}.qrels"


def run_path(folder: Path, stage: str, direction: str) -> Path:
    """The run of a stage in a folder of TREC files."""
    return folder / f"{stage_name(stage)}.{direction}.run"


@contextmanager
def replacing(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Write a report, with what belongs to it, in here: what an earlier report had next to it and this one did not write is removed then.

    Those are its calibration, its expansions, the TREC runs and the MTEB results of its stages; files that are not a report's stay.

    Raises:
        OSError: a file cannot be removed.
    """
    target = Path(folder)
    earlier = {path: path.stat().st_ino for path in _next_to(target) if path.is_file()}
    yield
    for path, inode in earlier.items():
        if path.is_file() and path.stat().st_ino == inode:  # what is written again is another file, for it was renamed
            path.unlink()


def _next_to(folder: Path) -> list[Path]:
    """Files that may belong to the report in a folder; none: there is no report that can be read."""
    try:
        record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        stages = list(record["stages"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = [folder / "calibration.json", folder / "expansions.parquet"]
    for direction in ("image_to_text", "text_to_image"):
        found += [qrels_path(folder / "trec", direction), *(run_path(folder / "trec", stage, direction) for stage in stages)]
    return found + [path for stage in stages for path in (folder / "mteb" / stage_name(stage)).glob("*Retrieval.json")]

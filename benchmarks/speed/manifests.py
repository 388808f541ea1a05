"""Rows of a manifest: read, split, leakage found, hashed (benchmarks/manifest_at_size.py)."""

from pathlib import Path
from typing import Any

_ROWS = {"manifest-100k": 100_000, "manifest-1m": 1_000_000}


def prepare(row: str, place: Path) -> None:
    """The files."""
    from benchmarks.manifest_at_size import write_manifest, write_pictures

    folder = place / row
    folder.mkdir()
    pictures = write_pictures(folder, _ROWS[row])
    write_manifest(folder / "warm-up.jsonl", pictures[:100], 1)
    write_manifest(folder / "pairs.jsonl", pictures, 1)


def measure(row: str, system: str, place: Path) -> dict[str, Any]:
    """One measurement."""
    from benchmarks.manifest_at_size import measured

    found = measured(place / row / "pairs.jsonl", place / row / "warm-up.jsonl")
    return {"seconds": found["seconds"], "megabytes": found["peak"] / 1e6}

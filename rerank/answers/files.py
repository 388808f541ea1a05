"""Names of the files that `python -m rerank` writes."""

from pathlib import Path

SUFFIXES = (".parquet", ".csv", ".jsonl")
"""Of the table, by its format."""


def page_path(output: Path) -> Path:
    """The path of a table's page."""
    return output.with_suffix(".html")

"""README's figures are those of the committed per-query file."""

import json

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.demo_table import END, RESULTS, ROOT, START, demo_table, readme_with


def test_readme_holds_the_table_of_the_committed_queries() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_with(demo_table(), readme) == readme, "run: python -m benchmarks.demo_table --write"


def test_committed_report_agrees_with_its_queries() -> None:
    """The means in report.json are those of queries.parquet, counted here by hand."""
    record = json.loads((RESULTS / "report.json").read_text(encoding="utf-8"))
    queries = pq.read_table(RESULTS / "queries.parquet")
    for stage, figures in record["stages"].items():
        for direction in ("image_to_text", "text_to_image"):
            rows = queries.filter(pc.and_(pc.equal(queries["stage"], stage), pc.equal(queries["direction"], direction)))
            ranks = rows["rank"].to_pylist()
            for k in (1, 5, 10):
                assert figures[direction][f"R@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks), abs=1e-12)
            assert figures[direction]["MRR"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks), abs=1e-12)


def test_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        readme_with("table", "no marks here")
    assert readme_with("T", f"a{START}old{END}b") == f"a{START}\nT\n{END}b"

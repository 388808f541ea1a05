"""results/export.md is made of the committed rows; tests/unit/train/export reads an export anew in the same way."""

import json

from benchmarks.exports import KEPT, PAGE, READERS, RUN, page
from benchmarks.kept_report import comparison, comparisons_of, mean_recall, read_kept


def test_the_page_holds_the_table_of_the_committed_rows() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m benchmarks.exports"


def test_every_tool_reads_the_demo_and_none_is_worse_than_the_run() -> None:
    record, queries = read_kept(KEPT)
    rows = json.loads((KEPT / "tools.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == list(READERS) and [row["fault"] for row in rows] == [None] * len(rows)
    (again,) = [row for row in comparisons_of(queries, [("onnxruntime-int8", RUN)]) if (row["direction"], row["metric"]) == ("both", "R@1")]
    kept = comparison(record["comparisons"], "onnxruntime-int8", RUN)
    assert (again["delta"], again["ci95"]) == (kept["delta"], kept["ci95"])
    exact = {row["name"] for row in rows if mean_recall(queries, row["name"]) == mean_recall(queries, RUN)}
    assert exact >= set(READERS) - {"transformers-5-bfloat16", "transformers-5-float16", "onnxruntime-int8"}
    assert [row["name"] for row in rows if comparison(record["comparisons"], row["name"], RUN)["verdict"] == "worse"] == []

"""docs/methods.md holds the table of the files under results/; its parts from made-up ones."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.demo_table import ROOT
from benchmarks.kept_report import keep_report
from benchmarks.methods_table import END, METHODS, PAGE, START, Method, methods_table, of_ensemble, of_report, page_with, unmeasured


def test_the_page_holds_the_table_of_the_committed_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_with(methods_table(), page) == page, "run: python -m benchmarks.methods_table --write"


def test_every_method_of_the_advice_has_a_row() -> None:
    names = " ".join(method.name for method in METHODS)
    for method in ("Cross-encoder reranking", "Text-text reranker", "Ensembling", "Query expansion", "Fine-tuning", "Hard-negative mining"):
        assert method in names


def test_links_lead_somewhere() -> None:
    written = {link.split(")")[0] for method in METHODS for link in method.how.split("](")[1:]}
    assert written and all((ROOT / "docs" / link).is_file() for link in written - {"expansion.md"})


def reports(folder: Path) -> None:
    """One query of each direction an image; the system is right on all ten, the base on images 0 to 3, "worse" on none."""
    rows: list[dict[str, object]] = []
    for stage in ("base", "better", "worse"):
        for image in range(10):
            for direction in ("image_to_text", "text_to_image"):
                rank = 1 if stage == "better" or (stage == "base" and image < 4) else 2
                row: dict[str, object] = {
                    "stage": stage,
                    "direction": direction,
                    "query_id": f"{image}",
                    "image_id": f"{image}",
                    "rank": rank,
                }
                rows.append(row | {"ap_at_r": 0.0, "r_precision": 0.0})
    compared = {
        "stage": "better",
        "against": "base",
        "direction": "both",
        "metric": "R@1",
        "delta": 0.6,
        "ci95": [0.3, 0.9],
        "verdict": "better",
    }
    stages = {"base": {"cost": {"seconds": 2.0}}, "better": {"cost": {"seconds": 5.0}}}
    keep_report({"data": {}, "stages": stages, "comparisons": [compared]}, pa.Table.from_pylist(rows), folder / "plain")
    study = {"questions": {"Which?": [["better", "base"]]}}
    keep_report({"data": {}, "stages": stages, "comparisons": [], "study": study}, pa.Table.from_pylist(rows), folder / "studied" / "base")
    (folder / "studied.md").write_text("a page")


def test_a_row_says_gain_interval_verdict_and_cost(tmp_path: Path) -> None:
    reports(tmp_path)
    methods = [
        Method("One", "yes", "`do`", of_report("plain", "better", "base")),
        Method("Two", "yes", "`do`", of_report("studied/base", "better", "base")),
        Method("Three", "no", "`do`", of_report("absent", "better", "base")),
        Method("Four", "no", "`do`", of_report("plain", "nobody", "base")),
        Method("Five", "", "`do`", unmeasured),
    ]
    lines = methods_table(tmp_path, methods).splitlines()[2:]
    assert (
        lines[0]
        == "| One | yes | +60.0 | +30.0 to +90.0 | better | 5.0 s for 2.0 s (2.5 times) | `do` | [results/plain](../results/plain) |"
    )
    assert lines[1].startswith("| Two | yes | +60.0 | +30.0 to +90.0 | ") and lines[1].endswith(
        "[results/studied.md](../results/studied.md) |"
    )
    assert [line.split(" | ")[2] for line in lines[2:]] == ["not measured"] * 3


def test_an_ensemble_is_compared_with_its_better_member_and_the_same_seconds_of_reranking(tmp_path: Path) -> None:
    reports(tmp_path)
    measure = of_ensemble("studied/base", "better", ("worse", "base"))
    assert (found := measure(tmp_path)) is not None and found.row["against"] == "base" and found.cost == "5.0 s for 2.0 s (2.5 times)"
    path = tmp_path / "studied" / "base" / "report.json"
    record = json.loads(path.read_text()) | {"ensemble": [{"stage": "better", "same_seconds": {"k": 4, "R@1": {"both": 0.7}}}]}
    path.write_text(json.dumps(record))
    assert (found := measure(tmp_path)) is not None
    assert found.cost.endswith("its additional seconds as reranking (K = 4): mean R@1 70.0 for 100.0")
    assert of_ensemble("absent", "better", ("base", "base"))(tmp_path) is None


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        page_with("table", "no marks here")
    assert page_with("T", f"a{START}old{END}b") == f"a{START}\nT\n{END}b"


def test_the_record_kept_is_json_without_what_the_tables_do_not_read(tmp_path: Path) -> None:
    reports(tmp_path)
    assert set(json.loads((tmp_path / "plain" / "report.json").read_text())) == {"data", "stages", "comparisons"}

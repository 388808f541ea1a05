"""Two finished reports compared later say what one report of both would have said."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.compare.__main__ import main
from eval.compare.reports import compare_reports
from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import with_ground_truth
from eval.errors import UserError
from eval.manifest.manifest import ManifestImage
from eval.metrics.evaluate import evaluate
from eval.report.precision import precision_sections
from eval.report.report import write_report
from eval.search.stage import Stage
from tests.unit.eval.one_direction import search


def retrieval_set(num_images: int = 40) -> RetrievalSet:
    captions = [f"caption {n}" for n in range(2 * num_images)]
    images = [ManifestImage(f"i{n:02d}", "test", Path("x"), None, 1, None, captions[2 * n : 2 * n + 2], "") for n in range(num_images)]
    return RetrievalSet(images, None, source="hand", split="test")


def stage(name: str, data: RetrievalSet, noise: float) -> Stage:
    generator = np.random.default_rng(5)
    images = generator.normal(size=(data.num_images, 8))
    captions = images[data.caption_image_C] + noise * generator.normal(size=(data.num_captions, 8))
    images, captions = (np.float32(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (images, captions))
    there = search("image_to_text", images, captions, data.positives("image_to_text"), 10)
    back = search("text_to_image", captions, images, data.positives("text_to_image"), 10)
    return Stage(name, {"image_to_text": there, "text_to_image": back})


def report(folder: Path, stages: list[Stage], data: RetrievalSet) -> Path:
    return write_report(folder, evaluate(data, stages))


def test_says_what_one_report_would_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    poor, good = stage("poor", data, 1.5), stage("good", data, 0.5)
    together = evaluate(data, [poor, good]).comparisons
    one = report(tmp_path / "one" / "eval" / "test", [Stage("model", poor.rankings)], data)
    two = report(tmp_path / "two", [Stage("model", good.rankings)], data)
    record = compare_reports([one, two])
    assert record["num_images"] == 40
    for ours, theirs in zip(record["comparisons"], together, strict=True):
        assert (ours.pop("stage"), ours.pop("against")) == ("B:model", "A:model")
        assert ours == {key: value for key, value in theirs.items() if key not in ("stage", "against")}
    # A run's folder stands for its only report.
    assert main([str(tmp_path / "one"), str(two), "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["comparisons"][0]["verdict"] == together[0]["verdict"] == "better"
    assert "better" in capsys.readouterr().out


def test_stages_of_other_names_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    one = report(tmp_path / "one", [stage("base", data, 1.5), stage("tuned", data, 0.5)], data)
    two = report(tmp_path / "two", [stage("model", data, 0.5)], data)
    assert main([str(one), str(two)]) == 2
    assert "--stages STAGE_A:STAGE_B" in capsys.readouterr().err
    assert main([str(one), str(two), "--stages", "tuned:nobody"]) == 2
    rows = compare_reports([one, two], ["tuned:model", "base:model"])["comparisons"]
    assert {row["against"]: row["delta"] for row in rows if row["metric"] == "R@1" and row["direction"] == "both"}["A:tuned"] == 0.0


def test_other_queries_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large, small = retrieval_set(40), retrieval_set(32)
    one = report(tmp_path / "one", [stage("model", large, 1.0)], large)
    two = report(tmp_path / "two", [stage("model", small, 1.0)], small)
    assert main([str(one), str(two)]) == 2
    assert "8 only in A, e.g. ['i32', 'i33', 'i34', 'i35', 'i36']; 0 only in B" in capsys.readouterr().err


def test_other_ground_truths_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    more = with_ground_truth(data, qrels={("i00", "i01#0")})
    one = report(tmp_path / "one", [stage("model", data, 1.0)], data)
    two = report(tmp_path / "two", [stage("model", more, 1.0)], more)
    with pytest.raises(UserError, match="1 queries have another number of relevant items in B than in A, e.g. .'i00'.: "):
        compare_reports([one, two])
    assert main([str(one), str(two)]) == 2
    assert "different ground truths: A: protocol all" in capsys.readouterr().err


def test_ground_truths_that_add_as_many_items_elsewhere_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    folders = []
    for name, qrels in (("one", {("i13", "i08#0"), ("i12", "i09#0")}), ("two", {("i13", "i09#0"), ("i12", "i08#0")})):
        judged = with_ground_truth(data, qrels=qrels)
        folders.append(str(report(tmp_path / name, [stage("model", judged, 1.0)], judged)))
    assert main(folders) == 2 and "different ground truths" in capsys.readouterr().err


def test_a_record_of_another_form_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    one = report(tmp_path / "one", [stage("model", data, 1.0)], data)
    for text in ("[]", '{"data": {}}'):
        (one / "report.json").write_text(text)
        assert main([str(one), str(one)]) == 2 and "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "report.json: cannot be read (Expecting property name"),
        ('{"data": {"sha256": "x", "truth": "all"}}', "report.json: cannot be read as a report: data.truth is 'all' (of another version"),
        ('{"stages": {}}', "report.json: cannot be read as a report: it has no data.sha256 (of another version"),
    ],
)
def test_which_report_cannot_be_read_and_why_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    data = retrieval_set()
    one = report(tmp_path / "one", [stage("model", data, 1.0)], data)
    two = report(tmp_path / "two", [stage("model", data, 1.0)], data)
    (two / "report.json").write_text(text)
    assert main([str(one), str(two)]) == 2
    told = capsys.readouterr().err
    assert f"error: {two}/{message}" in told and told.rstrip().endswith("; evaluate again")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("rank", lambda num: pa.array(["first"] * num), "column 'rank' holds string"),
        ("rank", lambda num: pa.array([None] * num, pa.int64()), "column(s) ['rank'] have empty cells"),
        (
            "rank",
            lambda num: pa.array([0] * 7 + [1] * (num - 7)),
            "7 row(s) have a rank below 1 or a figure that is not a number, e.g. of queries",
        ),
        ("ap_at_r", lambda num: pa.array([np.nan] + [1.0] * (num - 1)), "1 row(s) have a rank below 1 or a figure that is not a number"),
    ],
)
def test_a_table_no_evaluation_writes_is_refused(tmp_path: Path, column: str, values: Callable[[int], pa.Array], message: str) -> None:
    data = retrieval_set()
    one = report(tmp_path / "one", [stage("model", data, 1.0)], data)
    table = pq.read_table(one / "queries.parquet")
    changed = table.set_column(table.column_names.index(column), column, values(table.num_rows))
    pq.write_table(changed, one / "queries.parquet")
    with pytest.raises(UserError) as caught:
        compare_reports([one, one])
    assert f"{one / 'queries.parquet'}: not a report's table of queries: {message}" in str(caught.value)
    pq.write_table(table.drop([column]), one / "queries.parquet")
    with pytest.raises(UserError) as caught:
        compare_reports([one, one])
    assert "\n" not in str(caught.value) and column in str(caught.value)


def test_an_output_that_cannot_be_written_is_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    one = report(tmp_path / "one", [stage("model", data, 1.0)], data)
    assert main([str(one), str(one), "--output", str(one / "report.json" / "under")]) == 4
    assert f"could not write {one}/report.json/under" in capsys.readouterr().err


def test_double_queries_damage_and_absence_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    one = report(tmp_path / "one", [stage("model", data, 1.0)], data)
    two = report(tmp_path / "two", [stage("model", data, 1.0)], data)
    table = pq.read_table(two / "queries.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 3)]), two / "queries.parquet")
    record = json.loads((two / "report.json").read_text())
    digest = hashlib.sha256((two / "queries.parquet").read_bytes()).hexdigest()
    (two / "report.json").write_text(json.dumps(record | {"queries_sha256": digest}))
    assert main([str(one), str(two)]) == 2
    assert "3 queries are there twice, e.g. ['i00', 'i01', 'i02']" in capsys.readouterr().err
    (two / "queries.parquet").write_bytes(b"PAR1 nothing")
    assert main([str(one), str(two)]) == 2
    assert main([str(one), str(tmp_path)]) == 2
    assert "no report.json" in capsys.readouterr().err


@pytest.mark.parametrize("knows_hash", [True, False])
def test_queries_of_another_report_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], knows_hash: bool) -> None:
    data = retrieval_set()
    one, two = (report(tmp_path / name, [stage("model", data, noise)], data) for name, noise in (("one", 1.5), ("two", 0.5)))
    if not knows_hash:  # of an earlier version
        for folder in (one, two):
            record = json.loads((folder / "report.json").read_text())
            del record["queries_sha256"]
            (folder / "report.json").write_text(json.dumps(record))
    assert main([str(one), str(two)]) == 0
    (two / "queries.parquet").write_bytes((one / "queries.parquet").read_bytes())
    assert main([str(one), str(two)]) == 2
    expected = "another SHA-256" if knows_hash else "R@1 of model, image_to_text is "
    assert expected in capsys.readouterr().err


def test_more_runs_are_each_compared_with_the_first_and_change_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    folders = [report(tmp_path / str(noise), [stage("model", data, noise)], data) for noise in (1.2, 0.9, 0.4)]
    record = compare_reports(folders)
    both = compare_reports(folders[:2])
    assert record["comparisons"][:9] == both["comparisons"] and len(record["comparisons"]) == 18
    assert {(row["stage"], row["against"]) for row in record["comparisons"][9:]} == {("C:model", "A:model")}
    assert [record[letter] for letter in "ABC"] == list(map(str, folders))
    assert main([*map(str, folders)]) == 0
    last = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in last] == ["B:model", "C:model", "next"]
    assert all(len(line) <= 78 for line in last) and last[1].endswith("better")


def sealed_run(folder: Path, sha256: str, stages: list[Stage], data: RetrievalSet) -> Path:
    """The folder of a run whose export has these weights, by its manifest."""
    report(folder / "eval" / "test", stages, data)
    (folder / "export").mkdir()
    (folder / "export" / "manifest.json").write_text(json.dumps({"sha256": {"model.safetensors": sha256}}))
    (folder / "config.yaml").write_text("{}\n")
    return folder


def test_runs_of_the_same_weights_are_said_to_be_unable_to_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    one, two, three = (
        sealed_run(tmp_path / name, sha256 * 32, [stage("tuned", data, noise)], data)
        for name, sha256, noise in (("one", "ab", 1.0), ("two", "ab", 1.0), ("three", "cd", 0.5))
    )
    assert main([str(one), str(two), str(three)]) == 0
    said = capsys.readouterr().out
    assert "A and B hold the same weights (SHA-256 abababab): as tuned they\n  cannot differ" in said and said.count("same weights") == 1
    other = sealed_run(tmp_path / "other", "ab" * 32, [stage("tuned", data, 0.5)], data)  # read otherwise, for example
    assert main([str(one), str(other)]) == 0
    assert "yet tuned" in capsys.readouterr().out
    assert main([str(one / "eval" / "test"), str(report(tmp_path / "plain", [stage("tuned", data, 1.0)], data))]) == 0
    assert "same weights" not in capsys.readouterr().out


def in_precision(folder: Path, precision: str | None, data: RetrievalSet) -> Path:
    """A report of one stage that the towers embedded in a precision; None: an earlier report, which says nothing of it."""
    inputs = {} if precision is None else {"image_size": 224} | ({} if precision == "fp32" else {"precision": precision})
    sections = [] if precision is None else precision_sections(precision)  # type: ignore[arg-type]
    return write_report(folder, evaluate(data, [replace(stage("model", data, 1.0), inputs=inputs)]), sections)


def test_another_precision_is_said_and_not_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retrieval_set()
    full, half, earlier = (in_precision(tmp_path / str(precision), precision, data) for precision in ("fp32", "bf16", None))
    assert main([str(full), str(half), str(earlier), "--output", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    words = "B:model embedded in bf16 and A:model in fp32: a few queries of a thousand may differ for that alone"
    assert said.count(f"warning {words}") == said.count("embedded in") == 1
    assert (tmp_path / "out" / "compare.html").read_text().count(words) == 1
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["precisions"] == {"A:model": "fp32", "B:model": "bf16", "C:model": "fp32"}
    assert main([str(half), str(half)]) == 0
    assert "embedded in" not in capsys.readouterr().out

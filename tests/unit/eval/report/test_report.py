"""The three files of a report, opened as people and programs open them."""

import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import eval.report
from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from eval.metrics.evaluate import Figures, evaluate
from eval.report.page.about import About
from eval.report.page.page import SCRIPT_SHA256
from eval.report.report import print_report, read_report, report_record, write_report
from eval.report.section import Section, SectionFormat
from eval.search.stage import Stage
from tests.browser import needs_browser, opened
from tests.unit.eval.one_direction import search

EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def figures() -> Figures:
    """A source, a split and a stage with names that would be markup on a page, and on a terminal."""
    images = [ManifestImage(f"i{n}{EVIL}", EVIL, None, None, 1, None, [f"{EVIL} {n}"], "here") for n in range(12)]
    dataset = RetrievalSet(images, None, source=f"data[/bold].csv{EVIL}", split=EVIL)
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    found = {d: search(d, vectors, np.roll(vectors, 0), dataset.positives(d), 10) for d in ("image_to_text", "text_to_image")}  # type: ignore[arg-type]
    return evaluate(dataset, [Stage("base", found), Stage(f"tuned[x]{EVIL}", found)])  # type: ignore[arg-type]


def test_files_say_what_was_measured(figures: Figures, tmp_path: Path) -> None:
    folder = write_report(tmp_path / "deep" / "eval", figures)
    assert sorted(path.name for path in folder.iterdir()) == ["queries.parquet", "report.html", "report.json"]
    record = json.loads((folder / "report.json").read_text())
    assert list(record) == ["data", "stages", "comparisons", "outcomes", "slices", "failures", "queries_sha256"]
    assert record == read_report(folder)
    assert record.pop("queries_sha256") == hashlib.sha256((folder / "queries.parquet").read_bytes()).hexdigest()
    assert record == json.loads(json.dumps(report_record(figures)))
    assert pq.read_table(folder / "queries.parquet").equals(figures.queries)


def test_page_escapes_what_came_from_outside(figures: Figures, tmp_path: Path) -> None:
    leakage = SectionFormat(key="leakage", notes=lambda record: [f"Leakage: {record}"], warnings=lambda record: [record])
    link, told = tmp_path / f"x{EVIL.replace('/', '')}", About(title=EVIL, command=EVIL, chosen={"base": EVIL}, warnings=[EVIL])
    link.mkdir()
    about = replace(told, words={(f"tuned[x]{EVIL}", "base"): EVIL}, links=[(EVIL, link)])
    page = (write_report(tmp_path, figures, [Section(leakage, EVIL)], about=about) / "report.html").read_text()
    assert page.count("<script>") == page.count("<script") == 1 and page.count("&lt;script&gt;") >= 14
    links = re.findall(r"""(?:src|href)="([^"]*)""", page)
    assert links and all(re.match(r"#[a-z-]+$|\./", url) for url in links), "the page needs nothing but itself"
    assert f"'sha256-{SCRIPT_SHA256}'" in page and "default-src 'none'" in page


@needs_browser
def test_page_in_a_browser(figures: Figures, tmp_path: Path) -> None:
    page = write_report(tmp_path, figures) / "report.html"
    done = opened(page, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    assert '<table id="stages">' in done.stdout and done.stdout.count("<tr>") == 3 + 5 + 10 + 1 + 3 + 8
    assert "<title>Retrieval report" in done.stdout, "the title is ours: nothing from outside ran"


def test_terminal_shows_names_as_they_are(figures: Figures) -> None:
    console = Console(file=io.StringIO(), width=400)
    print_report(report_record(figures), console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"data[/bold].csv{EVIL} [{EVIL}]: 12 images, 12 captions" in text and f"tuned[x]{EVIL}" in text
    assert "100.00" in text and "no evidence" in text


@pytest.mark.parametrize("broken", ["write_table", "json", "replace"])
def test_failure_leaves_the_old_report_whole(figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    write_report(tmp_path, figures)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = Figures(figures.data | {"source": "new"}, figures.stages, figures.comparisons, figures.queries)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    if broken == "write_table":
        monkeypatch.setattr(eval.report.report.pq, "write_table", fail)
    elif broken == "replace":
        monkeypatch.setattr(eval.report.report.os, "replace", fail)
    else:
        changed = Figures({"source": float("nan"), **{k: v for k, v in figures.data.items() if k != "source"}}, {}, [], figures.queries)
    with pytest.raises((OSError, ValueError)):
        write_report(tmp_path, changed)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_with_few_images_page_and_terminal_say_how_large_a_difference_has_to_be(figures: Figures, tmp_path: Path) -> None:
    """Twelve images: at least one of them, 8 points, and half of an interval that is wider."""
    row: dict = {"stage": list(figures.stages)[1], "against": "base", "direction": "both"}
    row |= {"metric": "R@1", "delta": 0.1, "ci95": [-0.25, 0.35], "p_value": 0.5}
    row |= {"wins": 2, "losses": 1, "verdict": "no evidence"}
    for bounds, points in (([-0.25, 0.35], 30), ([0.0, 0.0], 8)):
        shown = replace(figures, comparisons=[row | {"ci95": bounds}])
        told = f"With only 12 images, differences of recall under about {points} points cannot be told from chance"
        out = io.StringIO()
        print_report(report_record(shown), console=Console(file=out, width=200))
        assert told in out.getvalue() and told in (write_report(tmp_path, shown) / "report.html").read_text()

"""The page of a comparison: which queries it shows, by ranks worked out by hand, with pictures and captions of the data."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.compare.__main__ import main
from eval.compare.page import Chart, differing_queries
from eval.compare.reports import compare_reports
from tests.browser import browser, needs_browser

IMAGES = ("i0", "i1", "i2")
EVIL = '<script>alert("x")</script> & a caption'
CAPTIONS = (EVIL, "a green bar", "a blue ring")


def write_report(folder: Path, ranks: dict[str, list[int]], *, source: str = "nowhere.jsonl", sha256: str = "s") -> Path:
    """A report of one stage; `ranks` of the pictures' and of the captions' relevant item. What is first where the rank is not 1 is the next
    item."""
    rows = []
    for direction, queries, items in (("image_to_text", IMAGES, [f"{i}#0" for i in IMAGES]), ("text_to_image", None, list(IMAGES))):
        queries = queries or [f"{i}#0" for i in IMAGES]
        for number, (query, rank) in enumerate(zip(queries, ranks[direction], strict=True)):
            first = items[number] if rank == 1 else items[(number + 1) % 3]
            row = {"stage": "model", "direction": direction, "query_id": query, "image_id": IMAGES[number], "rank": rank}
            rows.append(row | {"num_positives": 1, "ap_at_r": 1 / rank, "r_precision": float(rank == 1), "top_ids": [first]})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "queries.parquet")
    data = {"source": source, "split": None, "num_images": 3, "num_captions": 3, "sha256": sha256}
    (folder / "report.json").write_text(json.dumps({"data": data, "stages": {}, "comparisons": []}))
    return folder


RANKS = [
    {"image_to_text": [1, 2, 3], "text_to_image": [1, 1, 2]},
    {"image_to_text": [2, 1, 3], "text_to_image": [1, 3, 1]},
    {"image_to_text": [1, 1, 2], "text_to_image": [1, 1, 2]},
]


def pictured(folder: Path) -> Path:
    """The data of these reports."""
    for number, name in enumerate(IMAGES):
        Image.new("RGB", (300, 200), (80 * number, 90, 120)).save(folder / f"{name}.png")
    rows = [{"id": name, "image": f"{name}.png", "caption": text} for name, text in zip(IMAGES, CAPTIONS, strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def test_queries_differ_where_the_first_answer_is_relevant_in_one_run_alone(tmp_path: Path) -> None:
    folders = [write_report(tmp_path / name, ranks) for name, ranks in zip("abc", RANKS, strict=True)]
    found = {one.query: (list(one.ranks), one.outcomes) for one in differing_queries(compare_reports(folders))}
    assert found == {
        "i0": ([1, 2, 1], ["", "lost", ""]),
        "i1": ([2, 1, 1], ["", "won", "won"]),
        "i1#0": ([1, 3, 1], ["", "lost", ""]),
        "i2#0": ([2, 1, 2], ["", "won", ""]),
    }


def test_the_page_shows_them_with_pictures_and_captions_escaped(tmp_path: Path) -> None:
    source = pictured(tmp_path)
    folders = [write_report(tmp_path / name, ranks, source=str(source)) for name, ranks in zip("abc", RANKS, strict=True)]
    assert main([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<article") == 4 and page.count("<script>") == 1 and EVIL not in page and "&lt;script&gt;alert(" in page
    (caption,) = re.findall(r'<article[^>]*data-marks="won-B"[^>]*>.*?</article>', page, re.S)
    assert "“a blue ring”" in caption and 'alt="picture i2"' in caption  # the relevant picture, first in B
    assert re.findall(r'class="rank">(rank \d)', caption) == ["rank 2", "rank 1", "rank 2"]
    assert "The data have changed since" in page  # the report's hash is none of theirs
    assert "C:model" in page and "neither better nor worse" in page


@pytest.mark.parametrize(
    ("words", "told"),
    [([], "nowhere.jsonl is not here. --data MANIFEST says where it is"), (["--data", "{source}"], "The data have changed")],
)
def test_data_that_are_elsewhere_can_be_named(tmp_path: Path, words: list[str], told: str) -> None:
    source = pictured(tmp_path)
    folders = [write_report(tmp_path / name, ranks) for name, ranks in zip("ab", RANKS, strict=False)]
    assert main([*map(str, folders), "--output", str(tmp_path / "out"), *(word.format(source=source) for word in words)]) == 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert told in page and ("<img" in page) == bool(words)


def test_data_that_are_named_and_cannot_be_read_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_report(tmp_path / name, ranks) for name, ranks in zip("ab", RANKS, strict=False)]
    assert main([*map(str, folders), "--output", str(tmp_path / "out"), "--data", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err and not (tmp_path / "out" / "compare.html").exists()


def test_intervals_of_a_chart_lie_on_one_axis() -> None:
    rows = [
        {"direction": "both", "metric": "R@1", "delta": delta, "ci95": [low, high], "verdict": "no evidence"}
        for delta, low, high in ((0.05, -0.05, 0.1), (-0.02, -0.04, 0.0))
    ]
    chart = Chart.of({"comparisons": rows})
    assert [words for _, words in chart.ticks] == ["-10", "-5", "0", "+5", "+10"] and chart.zero == 50
    assert [(row["low"], row["dot"], row["high"]) for row in chart.rows] == [(25, 75, 100), (30, 40, 50)]


@needs_browser
def test_filters_leave_what_was_asked_for(tmp_path: Path) -> None:
    source = pictured(tmp_path)
    folders = [write_report(tmp_path / name, ranks, source=str(source)) for name, ranks in zip("abc", RANKS, strict=True)]
    assert main([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "compare.html").as_uri()
    shown = "[...document.querySelectorAll('.query')].filter(card => card.offsetParent).map(card => card.dataset.marks).sort()"
    with browser(tmp_path / "browser") as tab:
        tab.go(page, width=390)
        tab.wait_for("document.getElementById('count')?.textContent === '4 shown'")
        assert tab.value("document.documentElement.scrollWidth") <= 390
        lost_too = ["lost-B", "lost-B", "won-B won-C"]
        asked = [("outcome", "won-B", ["won-B", "won-B won-C"]), ("words", "GREEN bar", ["won-B won-C"]), ("outcome", "", lost_too)]
        for field, value, left in asked:
            enter = f"field = document.getElementById('{field}'); field.value = '{value}'; field.dispatchEvent(new Event('input'))"
            tab.value(f"{{ let {enter}; }}")
            assert tab.value(shown) == left
        assert all(url.startswith(("file:", "data:")) for url in tab.asked)

"""Choice sets and retention sets on a report's page: the figures of the record, and nothing from outside as markup."""

import html
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eval.choices.report import CHOICES, ChoiceReport, write_choices
from eval.choices.texts import choice_text_lines
from eval.report.render import render, show, show_interval
from eval.report.section import Section, SectionFormat
from train.siglip.watch import RETENTION

EVIL = "<script>document.title='owned'</script>"


def rows(page: str, name: str) -> list[list[str]]:
    """Cells of the rows of a class, tags taken out."""
    found = re.findall(rf'<tr class="{name}">(.*?)</tr>', page, flags=re.DOTALL)
    return [[html.unescape(re.sub(r"<[^>]*>", " ", cell)).split() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in found]  # type: ignore[misc]


def figure(value: float, chance: float = 0.25) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 0.05, value + 0.05], "chance": chance, "num_examples": 1200}


def choice_record(name: str = "tuned") -> dict[str, Any]:
    stages = {
        "base": {"overall": {"accuracy": figure(0.5)}, "categories": {f"order{EVIL}": {"accuracy": figure(0.25)}}},
        name: {"overall": {"accuracy": figure(0.75)}, "categories": {f"order{EVIL}": {"accuracy": figure(0.625)}}},
    }
    row = {"stage": name, "against": "base", "metric": "accuracy", "delta": 0.25, "ci95": [0.125, 0.375], "p_value": 0.01}
    row |= {"wins": 400, "losses": 100, "verdict": "better"}
    data = {"source": f"choices{EVIL}.jsonl", "num_examples": 1200, "num_images": 900, "num_captions": 1800, "sha256": "0f"}
    return {"data": data, "scores": {"base": "cosine", name: f"cosine{EVIL}"}, "stages": stages, "comparisons": [row]}


def watch_record(dropped: bool) -> dict[str, Any]:
    row = {"stage": "tuned", "against": "base", "direction": "both", "metric": "R@1", "delta": -0.125, "ci95": [-0.25, -0.0625]}
    other = row | {"direction": "image_to_text", "delta": 0.5}
    stages = {"base": {"image_to_text": {"R@1": 0.5}, "text_to_image": {"R@1": 0.25}}}
    stages["tuned"] = {"image_to_text": {"R@1": 0.25}, "text_to_image": {"R@1": 0.25}}
    data = {"source": f"past{EVIL}", "split": None, "num_images": 1234}
    return {"name": f"coco{EVIL}", "data": data, "stages": stages, "comparisons": [other, row], "dropped": dropped}


def test_every_stage_and_category_with_its_interval() -> None:
    page = render("choice_sets.html.j2", record=[choice_record()], text_lines=choice_text_lines)
    all_row, category_row = rows(page, "choice")
    assert all_row == [["all"], ["accuracy"], ["1,200"], ["25.00"], ["50.00", "45.00", "–", "55.00"], ["75.00", "70.00", "–", "80.00"]]
    assert category_row[0][0].startswith("order<script>") and category_row[4:] == [
        ["25.00", "20.00", "–", "30.00"],
        ["62.50", "57.50", "–", "67.50"],
    ]
    assert "<td>+25.00</td><td>[+12.50, +37.50]</td>" in page and '<td class="word better">better</td>' in page


def test_a_watched_set_says_whether_it_was_forgotten() -> None:
    page = Section(RETENTION, [watch_record(True), watch_record(False)]).html()
    lost, kept = rows(page, "watched")
    assert lost[1:] == [["1,234"], ["base"], ["tuned"], ["37.50"], ["25.00"], ["-12.50"], ["[-25.00,", "-6.25]"], ["forgotten"]]
    assert kept[-1] == ["no", "drop"]


@pytest.mark.parametrize("kind", [CHOICES, RETENTION], ids=lambda kind: kind.key)
def test_nothing_is_shown_of_what_was_not_measured(kind: SectionFormat) -> None:
    assert Section(kind, []).html().strip() == ""


def test_pages_escape_what_came_from_outside(tmp_path: Path) -> None:
    folder = write_choices(tmp_path, ChoiceReport(choice_record(f"tuned{EVIL}"), pa.table({"stage": ["base"]})))
    assert sorted(path.name for path in folder.iterdir()) == ["choices.html", "choices.json", "choices.parquet"]
    pages = [(folder / "choices.html").read_text(), Section(RETENTION, [watch_record(True)]).html()]
    for page, times in zip(pages, (7, 2), strict=True):  # title, heading, column, category, two in the rules, comparison
        assert "<script" not in page and page.count("&lt;script&gt;") == times
        assert not re.search(r"(src|href)=", page)


def test_numbers_as_people_read_them() -> None:
    assert (show("mean_rank", 2.25), show("R@1", 0.0625), show_interval([-0.5, 0.125])) == ("2.2", "6.25", "[-50.00, +12.50]")

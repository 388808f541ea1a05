"""eval/report/section.py: a section shows its record on the page and on the terminal."""

from pathlib import Path
from typing import Any

import pytest

from eval.report.section import Section, SectionFormat, section_lines


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "own.html.j2"
    path.write_text('<p>{{ record.word }} {{ show("R@1", record.share) }} {{ shout(directions.both) }}</p>', encoding="utf-8")
    return path


def test_a_template_outside_the_reports_own_has_its_names_and_escapes_what_came_from_outside(template: Path) -> None:
    own = SectionFormat(key="own", template=template, names={"shout": str.upper})
    assert str(Section(own, {"word": "<b>", "share": 0.5}).html()).strip() == "<p>&lt;b&gt; 50.00 BOTH</p>"


def test_sentences_are_those_of_the_sections_a_record_has(template: Path) -> None:
    def lines(record: Any, data: Any) -> list[str]:
        return [f"{word} on {data['split']}" for word in record]

    formats = [SectionFormat(key=key, template=template, lines=lines) for key in ("second", "first")]
    assert section_lines({"first": ["a", "b"], "data": {"split": "test"}}, formats) == ["a on test", "b on test"]
    record = {"first": ["a"], "second": ["c"], "data": {"split": "val"}}
    assert section_lines(record, formats) == ["c on val", "a on val"], "in the order of the formats"

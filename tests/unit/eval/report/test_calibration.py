"""The calibration's part of a report: its plot, its table, its sentences."""

import re
from typing import Any

from eval.report.calibration import CALIBRATION, drawn_bins
from eval.report.section import Section, section_lines


def record(*, is_fitted: bool = False) -> dict[str, Any]:
    """One stage; 90% is reached, 95% is not."""
    rows = [
        {"precision": 0.9, "score": 1.25, "ci95": [0.5, None], "recall": 0.8, "queries": 7},
        {"precision": 0.95, "score": None, "ci95": None, "recall": 0.0, "queries": 0},
    ]
    direction = {"score": "match_logit", "points": [[0.0, 0.1], [2.0, 1.0]], "thresholds": rows}
    bins = [
        {"said": 0.1, "relevant": 0.125, "ci95": [0.05, 0.2], "pairs": 400},
        {"said": 0.5, "relevant": 1.0, "ci95": [0.0, 1.0], "pairs": 3},
        {"said": 0.9, "relevant": 0.75, "ci95": [0.5, 1.0], "pairs": 100},
    ]
    found = [{"precision": 0.9, "found": 0.85, "ci95": [0.7, 0.95], "answered": 0.6}]
    checked = {"bins": bins, "error": 0.035, "thresholds": found}
    sides = ("image_to_text", "text_to_image")
    return {
        "version": 1,
        "model": "0" * 64,
        "fitted_on": {"split": "val", "images": 1200, "captions": 6000, "sha256": ""},
        "stages": {"tuned+<blip>": {"reranker": "1", "top_k": 16} | dict.fromkeys(sides, direction)},
        "measured": {"split": "test", "is_fitted": is_fitted, "stages": {"tuned+<blip>": dict.fromkeys(sides, checked)}},
    }


def test_the_plot_shows_the_bins_that_tell_something() -> None:
    shown = drawn_bins(record()["measured"]["stages"]["tuned+<blip>"]["text_to_image"]["bins"])
    assert shown == [
        {"x": 20.0, "y": 175.0, "ends": [190.0, 160.0], "radius": 5.0},
        {"x": 180.0, "y": 50.0, "ends": [100.0, 0.0], "radius": 3.5},
    ]
    page = str(Section(CALIBRATION, record()).html())
    assert page.count("<circle") == 4 and re.search(r'<svg[^>]* role="img" aria-label="Reliability of tuned\+&lt;blip&gt;: ', page)
    assert 'points="20.0,175.0 180.0,50.0 "' in page and "<blip>" not in page


def test_the_table_has_thresholds_and_what_they_gave() -> None:
    page = str(Section(CALIBRATION, record()).html())
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r'<tr class="threshold">.*?</tr>', page, flags=re.DOTALL)]
    assert rows[0] == ["image", "to", "text", "90%", "1.25", "0.5", "–", "none", "80.0%", "85.0%", "70.0", "–", "95.0", "60.0%"]
    assert rows[1] == ["image", "to", "text", "95%", "not", "reached"] and len(rows) == 4
    assert "the cross-encoder's logit of a match; of each query the first 16 candidates" in page.replace("&#39;", "'")
    assert "took no part in it" in page and "looks better than it is" not in page
    assert "looks better than it is" in str(Section(CALIBRATION, record(is_fitted=True)).html())


def test_the_terminal_says_the_same() -> None:
    lines = section_lines({"calibration": record(), "data": {}}, [CALIBRATION])
    assert lines[0] == "calibration of tuned+<blip>, image to text, on val (1,200 images): 90% relevant from 1.25 (85.0% measured)"
    none = record()
    none["stages"]["tuned+<blip>"]["text_to_image"] = {"thresholds": [], "score": "cosine"}
    assert section_lines({"calibration": none, "data": {}}, [CALIBRATION])[1].endswith("no score reaches a share of 50%")

"""The last words of a command: what was found, within 78 columns, with no number cut."""

from typing import Any

import pytest

from eval.report.answer import MOST_LINES, WIDTH, LastWords, answer_lines, chosen_line


def record(*rows: tuple[str, str, float, float], extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """stage, against, R@1 of the stage, difference."""
    means = {name: value for stage, against, value, delta in rows for name, value in ((stage, value), (against, value - delta))}
    stages = {name: {way: {"R@1": value} for way in ("image_to_text", "text_to_image")} for name, value in means.items()}
    comparisons = [
        {
            "stage": stage,
            "against": against,
            "direction": direction,
            "metric": metric,
            "delta": delta,
            "ci95": [delta - 0.04, delta + 0.05],
            "verdict": "better" if delta > 0 else "no evidence",
        }
        for stage, against, _, delta in rows
        for direction in ("image_to_text", "both")
        for metric in ("R@1", "R@5")
    ]
    return {"stages": stages, "comparisons": comparisons}


def test_the_subject_comes_first_then_what_reranks_it_and_each_stage_once() -> None:
    found = record(
        ("base+blip", "base", 0.9, 0.6),
        ("tuned", "base", 0.4, 0.1),
        ("tuned+blip", "tuned", 0.95, 0.55),
        ("tuned+blip", "base+blip", 0.95, 0.05),
    )
    assert answer_lines(found, first="tuned") == [
        "tuned       40.0 mean R@1 (base 30.0): +10.0 [+6.0, +15.0] better",
        "tuned+blip  95.0 mean R@1 (tuned 40.0): +55.0 [+51.0, +60.0] better",
        "base+blip   90.0 mean R@1 (base 30.0): +60.0 [+56.0, +65.0] better",
    ]
    many = record(*((f"stage {number}", "base", 0.4, 0.0) for number in range(9)))
    assert len(answer_lines(many)) == 3


def test_a_report_without_comparisons_tells_its_means() -> None:
    found = record(("tuned", "base", 0.4, 0.1)) | {"comparisons": []}
    assert answer_lines(found) == ["tuned  40.0 mean R@1", "base  30.0 mean R@1"]


@pytest.mark.parametrize("length", [1, 20, 60, 75])
def test_long_names_fold_and_nothing_is_cut(length: int) -> None:
    found = record((f"{'t' * (length - 1)}+", "b" * length, 0.4, -0.1234), ("x" * length, "b" * length, 0.4, 0.1))
    lines = answer_lines(found)
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(" ".join(lines).split()) == (
        f"{'t' * (length - 1)}+ 40.0 mean R@1 ({'b' * length} 30.0): -12.3 [-16.3, -7.3] no evidence "
        f"{'x' * length} 40.0 mean R@1 ({'b' * length} 30.0): +10.0 [+6.0, +15.0] better"
    )
    for whole in ("-12.3", "[-16.3, -7.3]", "no evidence", "[+6.0, +15.0]"):
        assert any(whole in line for line in lines)


FOUR = record(
    ("tuned", "base", 0.4, 0.1), ("tuned+blip", "tuned", 0.95, 0.55), ("base+blip", "base", 0.9, 0.6), ("tuned+clip", "tuned", 0.8, 0.4)
)
PLACES = ["report   runs/demo/eval/test/report.html", "export   runs/demo/export", "picture  runs/demo/curves.png"]


def test_the_last_words_are_eight_lines_that_end_in_what_to_do_next() -> None:
    past = "watch past: mean R@1 57.62 -> 43.12, -14.50 [-20.12, -9.00]: forgotten"
    above, lines = LastWords.of(FOUR, first="tuned", notes=[past], places=PLACES, next="./launch.sh wise runs/demo").lines()
    assert above == [] and [line.split()[0] for line in lines] == [
        *("tuned", "tuned+blip", "tuned+clip", "watch"),
        *("report", "export", "picture", "next"),
    ]
    assert len(lines) == MOST_LINES and max(map(len, lines)) <= WIDTH


def test_a_warning_comes_first_and_what_finds_no_room_is_told_above() -> None:
    missed = "No checkpoint of this run beat its base on val (mean R@1 26.61); the export holds the weights that it began with."
    notes = ["a short note", "mining   " + "a word and another " * 12, "exports  last"]
    above, lines = LastWords.of(FOUR, first="tuned", warnings=[missed], notes=notes, places=PLACES, next="n").lines()
    assert " ".join(lines[:2]).replace("   ", " ") == missed and lines[2].startswith("tuned  ") and lines[3] == "a short note"
    assert above == notes[1:] and len(lines) == MOST_LINES
    crowded = LastWords.of(FOUR, first="tuned", warnings=[missed * 3], places=PLACES, next="n").lines()
    assert crowded[0] == [missed * 3] and crowded[1][0].startswith("tuned  ")  # the answer is there whatever else there is


def test_without_a_report_there_are_places_and_what_to_do() -> None:
    assert LastWords.of(None, places=["export   e"], next="look").lines()[1] == ["export   e", "next     look"]
    long = LastWords.of(None, next="look " * 20).lines()[1]
    assert len(long) == 2 and max(map(len, long)) <= WIDTH and long[1].startswith("         look")


def test_what_was_chosen_on_val_is_said() -> None:
    chosen = {
        "fusion": {"stage": "tuned+blip", "fused": "tuned+blip+fused", "chosen_on": {"split": "val"}},
        "expansions": [
            {"stage": "tuned+words", "chosen_on": {"split": "val"}},
            {"stage": "tuned+views", "chosen_on": None},
        ],
        "ensemble": {"stage": "ensemble", "chosen_on": {"split": None}},
    }
    said = chosen_line(FOUR | chosen)
    assert said == "chosen on val: a setting of tuned+blip+fused, tuned+words; chosen on all rows: a setting of ensemble"
    assert "chosen on val: a setting of tuned+blip+fused, tuned+words" in " ".join(LastWords.of(FOUR | chosen).lines()[1])

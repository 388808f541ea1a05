"""The last words of a command: what was found, within 78 columns, with no number cut."""

from typing import Any

import pytest

from eval.report.answer import WIDTH, answer_lines


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

"""Tables on a terminal: whatever its width, no number and no verdict is cut."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from eval.choices.report import print_choices
from eval.metrics.stage_metrics import METRICS
from eval.report.console_table import Column, print_table
from eval.report.report import print_comparisons, print_report

LONG = "an-ensemble-of-four+blip-large+adaptive+fused"
VERDICTS = ("better", "worse", "no evidence")
COLUMNS = [
    Column("stage", is_name=True),
    Column("R@1", is_right=True),
    Column("difference", is_right=True, left_out=3),
    Column("mean rank", is_right=True, left_out=2),
    Column("losses", is_right=True, left_out=1),
    Column("verdict"),
]


def printed(show: Any, width: int, *, is_terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=is_terminal, no_color=True)
    show(console)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]


def cells(text: str) -> set[str]:
    """What stands between the lines of tables, line by line."""
    return {cell.strip() for line in text.splitlines() for cell in re.split("[│┃]", line)}


def report_record() -> dict[str, Any]:
    """A report of eight stages with long names, whose figures are all different; each metric's are known by their last digits."""
    stages = {}
    for number in range(8):
        figures = {metric: (number + 100 * place + 1) / 10_000 for place, metric in enumerate(METRICS)}
        figures |= {"R@10": 1.0, "mean_rank": 12345.6}
        stages[f"{LONG}-{number}"] = {"image_to_text": figures, "text_to_image": figures}
    rows = [
        {"stage": f"{LONG}-1", "against": f"{LONG}-0", "direction": direction, "metric": metric, "verdict": verdict}
        | {"delta": -0.12345, "ci95": [-0.2468, 0.1357], "p_value": 0.0321, "wins": 123456, "losses": 98765}
        for direction, metric, verdict in zip(("both", "text_to_image", "both"), ("R@1", "R@1", "R@10"), VERDICTS, strict=True)
    ]
    data = {"source": "some/where/" + "deep/" * 30 + "pairs.jsonl", "split": "test", "num_images": 1000, "num_captions": 5000}
    return {"data": data, "stages": stages, "comparisons": rows}


def choices_record() -> dict[str, Any]:
    figure = {"value": 0.625, "ci95": [0.123, 1.0], "chance": 0.25, "num_examples": 123456}
    figures = {"overall": {"accuracy": figure, "group_score": figure}, "categories": {"a category of a long name": {"accuracy": figure}}}
    row = {"stage": f"{LONG}-1", "against": f"{LONG}-0", "metric": "group_score", "delta": -0.12345, "ci95": [-0.2468, 0.1357]}
    rows = [row | {"p_value": 0.0321, "wins": 123456, "losses": 98765, "verdict": verdict} for verdict in VERDICTS]
    data = {"source": "choices.jsonl", "num_examples": 100, "num_images": 100}
    return {"data": data, "stages": {f"{LONG}-{number}": figures for number in range(4)}, "comparisons": rows}


@pytest.mark.parametrize("width", [60, 80])
def test_a_report_on_a_narrow_terminal(width: int) -> None:
    record = report_record()
    text = printed(lambda console: print_report(record, console=console), width)
    assert "…" not in text and max(cell_len(line) for line in text.splitlines() if line[:1] in "│┃┏└") <= width
    known = [f"{100 * figures['image_to_text'][metric]:.2f}" for figures in record["stages"].values() for metric in ("R@1", "R@5", "R@10")]
    assert len(set(known)) == 17 and {*known, *VERDICTS, "-12.35"} <= cells(text)
    assert ("[-24.68, +13.57]" in cells(text)) == (width == 80)
    gone = {60: ["mAP@R, R-Precision", "95% interval, p, wins, losses"], 80: ["p, wins, losses"]}[width]
    assert re.findall(rf"^left out at {width} columns: (.*); all are in report.json$", text, flags=re.MULTILINE) == gone
    names = [cell for line in text.splitlines() if line.startswith("│") and (cell := line.split("│")[1].strip())]
    assert "".join(names).count(LONG) == 8 * 2 + 3, "names fold, and lose nothing"


def test_comparisons_of_two_finished_runs_on_a_narrow_terminal() -> None:
    text = printed(lambda console: print_comparisons(report_record()["comparisons"], console, whole="--output DIR writes all"), 80)
    assert {*VERDICTS, "-12.35", "[-24.68, +13.57]"} <= cells(text) and "…" not in text
    assert text.splitlines()[-1] == "left out at 80 columns: p, wins, losses; --output DIR writes all"


@pytest.mark.parametrize("width", [60, 80])
def test_choices_on_a_narrow_terminal(width: int) -> None:
    text = printed(lambda console: print_choices(choices_record(), console), width)
    assert "…" not in text and max(map(cell_len, text.splitlines())) <= width + 40 * text.count("left out")
    assert {*VERDICTS, "62.5", "-12.35", "[12.3, 100.0]"} <= cells(text)
    (row,) = [line for line in text.splitlines() if line.count("62.5") > 1]
    assert row.count("62.5") == 4, "every stage has its figure"


@pytest.mark.parametrize(("width", "is_terminal"), [(400, True), (20, False), (80, False)])
def test_a_wide_terminal_and_a_file_get_every_column(width: int, is_terminal: bool) -> None:
    text = printed(lambda console: print_report(report_record(), console=console), width, is_terminal=is_terminal)
    text += printed(lambda console: print_choices(choices_record(), console), width, is_terminal=is_terminal)
    headers = {*(metric.replace("_", " ") for metric in METRICS), "95% interval", "p", "wins", "losses", "verdict", "chance", "examples"}
    assert headers <= cells(text) and "left out" not in text and "…" not in text
    assert {f"{LONG}-{number}" for number in range(8)} | {"12345.6", "98765", "0.0321"} <= cells(text), "no name is folded"


@settings(deadline=None, max_examples=12)
@given(
    names=st.lists(st.text("abé漢+- [/b]", min_size=1, max_size=60), min_size=1, max_size=3),
    values=st.lists(st.integers(0, 10**9), min_size=3, max_size=3),
)
def test_no_number_is_cut_at_any_width(names: list[str], values: list[int]) -> None:
    rows = [[name, *map(str, values), "1", "no evidence"] for name in names]
    columns_before = -1
    for width in range(40, 201):
        text = printed(lambda console: print_table(console, "title", COLUMNS, rows, whole="all are in F"), width)  # noqa: B023
        assert "…" not in text
        head, *_ = [line for line in text.splitlines() if line.startswith("┏")]
        lines = [line for line in text.splitlines() if line[:1] in "│┃┏└"]
        assert {cell_len(line) for line in lines} == {cell_len(head)} and cell_len(head) <= width
        missing = re.findall(r"^left out at \d+ columns: (.*); all are in F$", text, flags=re.MULTILINE)
        gone = missing[0].split(", ") if missing else []
        shown = [column for column in COLUMNS if column.header not in gone]
        assert gone == [column.header for column in COLUMNS[2:5]][3 - len(gone) :], "the least important go first"
        assert len(shown) == head.count("┳") + 1 >= columns_before, "more room never shows fewer columns"
        columns_before = len(shown)
        for place, column in enumerate(COLUMNS):
            if column in shown and not column.is_name:
                found = [line.split("│")[1 + shown.index(column)].strip() for line in lines if "│" in line]
                assert found.count(rows[0][place]) == len(names)
    assert columns_before == len(COLUMNS)


def test_columns_that_cannot_fit_are_printed_whole() -> None:
    rows = [["tuned", "12345678901234567890", "+1.00", "2.0", "3", "no evidence"]]
    text = printed(lambda console: print_table(console, "title", COLUMNS, rows, whole="all are in F"), 20)
    assert {"12345678901234567890", "no evidence"} <= cells(text) and "…" not in text


def test_the_command_at_80_columns(pictures: list[Path], sentences: list[str], tiny_siglip: Path, tmp_path: Path) -> None:
    data = pictures[0].parent / "console.csv"
    rows = [f"{picture.name},{sentence}\n" for picture, sentence in zip(pictures, sentences, strict=False)]
    data.write_text("image,caption\n" + "".join(rows))
    command = [sys.executable, "-m", "eval", "--model", tiny_siglip, "--also", f"{LONG.replace('+', '-')}={tiny_siglip}", "--data", data]
    command += ["--output", tmp_path / "out", "--num-workers", "0"]
    terminal, end = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(list(map(str, command)), stdout=end, stderr=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[4])
    os.close(end)
    said = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        said += part
    os.close(terminal)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.decode())
    assert "no evidence" in cells(text) and "+0.00" in cells(text) and "…" not in text
    assert "left out at 80 columns: p, wins, losses; all are in report.json" in text

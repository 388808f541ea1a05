"""`python -m benchmarks` with stand-in rows: systems in turns, an earlier commit, a missing peer, a fall, the table, the exit code."""

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.__main__ as harness
from benchmarks.speed.retrieval import _mine
from benchmarks.speed.rows import ROWS, Peer, Row
from benchmarks.speed.table import BEFORE, OURS, Measured, cells, conclusion, page
from tests.small_job import SmallWorld, load

THERE, MISSING = Peer("json", "json", "pip install json"), Peer("absent", "no_such_package", "pip install absent")
ROW = Row("stand-in", "a stand-in", "pairs/s", "none", (THERE, MISSING), pages=("at-size",))
RATES = {"float32": 100.0, "bfloat16": 200.0, "memory": 10.0, "disk": 1.0}
Run = Callable[..., tuple[int, list[tuple[str, str, str]]]]


def rounds(*seconds: float, **more: Any) -> list[dict[str, Any] | None]:
    return [{"seconds": one} | more for one in seconds]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command with measurements that take what is said; (exit code, (row, system, tree) of each)."""

    @contextmanager
    def earlier(commit: str | None) -> Any:
        yield tmp_path / "before" if commit else None

    def command(words: list[str], seconds: dict[str, float | None]) -> tuple[int, list[tuple[str, str, str]]]:
        calls = []

        def child(row: str, system: str, place: Path, tree: Path, *options: str) -> tuple[dict[str, Any] | None, str]:
            if row == "machine":
                return RATES, ""
            if "--prepare" in options:
                return None, ""
            name = BEFORE if tree != harness.ROOT else system
            calls.append((row, name, tree.name))
            taken = seconds[name]
            return (None, "it broke") if taken is None else ({"seconds": taken, "amount": 8, "work": {"float32": 40}, "processor": 0.0}, "")

        monkeypatch.setattr(harness, "earlier", earlier)
        monkeypatch.setattr(harness, "run_child", child)
        return harness.main(words, [ROW]), calls

    return command


def test_systems_take_turns_and_a_missing_peer_is_named_with_its_remedy(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, calls = run(["--before", "abc", "--rounds", "3"], {OURS: 1.0, BEFORE: 2.0, "json": 4.0})
    assert code == 0 and [system for _, system, _ in calls] == [OURS, BEFORE, "json", "json", BEFORE, OURS, OURS, BEFORE]
    assert {tree for _, system, tree in calls if system != BEFORE} == {harness.ROOT.name}
    said = capsys.readouterr().out
    assert "| 8.0 pairs/s | 4.0 pairs/s | 2.00 (2.00 to 2.00) | json 2.0 pairs/s | 4.00 (4.00 to 4.00) |" in said
    assert "| 20.0 pairs/s (float32 products) | 2.5 |" in said
    assert "absent is not installed: pip install absent" in said and "results/at-size.md" in said
    assert "No row of 1 is slower than at abc; times as fast, the most: stand-in 2.00." in said


def test_a_fall_beyond_the_spread_is_printed_and_gives_exit_code_1(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--before", "abc"], {OURS: 1.2, BEFORE: 1.0, "json": 4.0})[0] == 1
    said = capsys.readouterr().out
    assert "SLOWER than at abc, beyond the spread: stand-in" in said and "0.83 (0.83 to 0.83) **slower**" in said


def test_what_does_not_run_is_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier commit that lacks what is measured is no fault; this tree's is."""
    assert run(["--before", "abc", "--rounds", "1"], {OURS: 1.0, BEFORE: None, "json": None})[0] == 0
    assert "round 1, before did not run: it broke" in capsys.readouterr().out
    assert run(["--rounds", "1"], {OURS: None, "json": 1.0})[0] == 1


def test_a_fall_is_no_overlap() -> None:
    assert Measured(ROW, {OURS: rounds(1.04, 1.2), BEFORE: rounds(0.9, 1.0)}).is_fall
    assert not Measured(ROW, {OURS: rounds(1.02, 1.2), BEFORE: rounds(0.9, 1.0)}).is_fall  # within the tolerance
    assert not Measured(ROW, {OURS: rounds(1.2, 0.95), BEFORE: rounds(0.9, 1.0)}).is_fall
    assert not Measured(ROW, {OURS: rounds(9.0)}).is_fall


def test_ratios_are_taken_within_a_round_and_the_slowest_resource_is_the_limit() -> None:
    work = {"float32": 40, "disk": 3}
    found = Measured(ROW, {OURS: rounds(1.0, 2.0, work=work), BEFORE: [{"seconds": 3.0}, None]})
    assert found.ratios(BEFORE) == [3.0] and found.limit(RATES) == (3.0, "the disk")
    floor = Measured(ROW, {OURS: rounds(1.0, floor=0.5)})
    assert floor.limit(RATES) == (0.5, "decoding and resizing alone")
    assert cells(Measured(ROW, {OURS: [None]}), RATES)[1:4] == ["", "", ""]


def test_the_page_has_the_conclusion_first_and_every_note() -> None:
    found = Measured(ROW, {OURS: rounds(1.5, 1.6), BEFORE: rounds(1.0, 1.1)}, notes=["a note"])
    faster = Measured(replace(ROW, name="gain"), {OURS: rounds(1.0, 1.1), BEFORE: rounds(2.0, 2.2)})
    assert conclusion([faster], "abc") == "No row of 1 is slower than at abc; times as fast, the most: gain 2.00."
    first = conclusion([found, faster], "abc")
    assert first == "Slower than at abc: stand-in; times as fast, the most: gain 2.00."
    text = page([found, faster], RATES, "the command", "a machine", first)
    assert "2 rows, 2 of them with an earlier commit" in text
    assert text.splitlines()[2] == f"**{first}**" and "- stand-in: a note" in text and "[at-size](at-size.md)" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {10}


def test_a_measurement_is_a_process_with_the_trees_own_code(tmp_path: Path) -> None:
    """Its output may hold more than its last line; an error's last line is the fault."""
    folder = tmp_path / "benchmarks" / "speed"
    folder.mkdir(parents=True)
    lines = ["import json, os, sys", "print('noise')", "assert sys.argv[1] != 'bad', 'no such row'"]
    lines += ["print(json.dumps({'seconds': 1.0, 'words': sys.argv[1:3], 'gpu': os.environ['CUDA_VISIBLE_DEVICES']}))"]
    (folder / "measure.py").write_text("\n".join(lines))
    found, fault = harness.run_child("row", "ours", tmp_path, tmp_path)
    assert fault == "" and found is not None and found.pop("processor") > 0
    assert found == {"seconds": 1.0, "words": ["row", "ours"], "gpu": ""}
    assert harness.run_child("bad", "ours", tmp_path, tmp_path) == (None, "AssertionError: no such row")


def test_every_row_has_its_module_and_its_pages(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [row.name for row in ROWS] and len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert (harness.ROOT / "benchmarks" / "speed" / f"{row.module}.py").is_file()
        assert all((harness.ROOT / "results" / f"{name}.md").is_file() for name in row.pages)
    with pytest.raises(SystemExit):
        harness.main(["no-such-row"])
    assert "unknown rows: no-such-row" in capsys.readouterr().err
    assert "torch" not in json.dumps(sorted(vars(sys.modules["benchmarks.speed.rows"])))


def test_the_row_of_mining_still_mines(small_world: SmallWorld) -> None:
    """It calls what train/mining offers by name, at an earlier commit too."""
    dataset, draws = load(small_world.manifest), np.random.default_rng(0)
    images_ID, captions_CD = (draws.standard_normal((number, 8), dtype=np.float32) for number in (dataset.num_images, dataset.num_captions))
    assert _mine(dataset, images_ID, captions_CD)() > dataset.num_images

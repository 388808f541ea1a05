"""The key `choices` of a job: measured at the end, by one process as by two, and refused before the first step."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.nursery import ROOT, Nursery
from tests.small_job import SmallWorld

SHORT = {"train__max_steps": 2, "mining": None}


@pytest.fixture(scope="module")
def choices(small_world: SmallWorld) -> Path:
    """A choice and a pair of each of ten test pictures, beside them."""
    rows = [json.loads(line) for line in small_world.manifest.read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "test"][:10]
    lines = [{"image": row["image"], "caption": row["captions"][-1], "false_captions": ["a red bar at the top?", "one"]} for row in rows]
    lines += [{"images": [a["image"], b["image"]], "captions": [a["captions"][-1], "one"]} for a, b in zip(rows, rows[1:], strict=False)]
    path = small_world.manifest.parent / "choices.jsonl"
    path.write_text("".join(json.dumps(line | {"category": "x"}) + "\n" for line in lines), encoding="utf-8")
    return path


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "job" / "eval" / "test" / "report.json").read_text())


def test_base_and_tuned_are_measured_alike_by_one_process_and_two(
    small_world: SmallWorld, nursery: Nursery, choices: Path, tmp_path: Path
) -> None:
    changes = SHORT | {"choices": [str(choices)], "rerank": {"model": str(ROOT / "demo" / "models" / "blip-itm"), "top_k": 2}}
    config = small_world.write_config(tmp_path / "one", **changes)
    alone = nursery.start("train", [str(config)])
    assert alone.wait() == 0, alone.output()
    (record,) = report(tmp_path / "one")["choices"]
    assert list(record["stages"]) == ["base", "tuned", "blip", "base+blip", "tuned+blip"]
    assert record["data"]["source"] == str(choices) and record["data"]["num_examples"] == 19
    folder = tmp_path / "one" / "runs" / "job" / "eval" / "test" / "choices" / "0"
    assert json.loads((folder / "choices.json").read_text()) == record
    assert pq.read_table(folder / "choices.parquet").num_rows == 5 * 19
    assert "group score" in alone.output()

    config = small_world.write_config(tmp_path / "two", **changes)
    ranks = nursery.start_ranks("train", [str(config)], 2)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output()
    (other,) = report(tmp_path / "two")["choices"]
    for stage in ("base", "blip", "base+blip"):  # tuned differs: two processes add gradients in another order
        assert other["stages"][stage] == record["stages"][stage]

    again = nursery.start("train", [str(config)])
    assert again.wait() == 0 and "is finished" in again.output() and "group score" in again.output()

    before = report(tmp_path / "two")["stages"]["base+blip"]["cost"]
    more = nursery.start("train", [str(config), "rerank.top_k=3"])
    assert more.wait() == 0, more.output()
    after = report(tmp_path / "two")["stages"]["base+blip"]["cost"]
    assert 0 < before["pairs_needed"] <= after["pairs_kept"] < after["pairs_needed"]  # the pairs of tuned are cached too
    assert report(tmp_path / "two")["choices"][0]["stages"] == other["stages"]
    off = nursery.start("train", [str(config), "rerank.pair_scores=false", "rerank.top_k=3"])
    assert off.wait() == 0 and "is finished" in off.output()  # the place of the cache changes no figure


def test_a_choice_set_with_faults_is_refused_before_the_first_step(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"image": "none.png", "caption": "one", "false_captions": ["two"]}\n')
    child = nursery.start("train", [str(small_world.write_config(tmp_path, **SHORT, choices=[str(bad)]))])
    assert child.wait() == 2 and f"{bad}:1" in child.output() and "does not exist" in child.output()
    assert not (tmp_path / "runs" / "job" / "export").exists()


def test_without_a_final_report_there_is_no_place_for_them(
    small_world: SmallWorld, nursery: Nursery, choices: Path, tmp_path: Path
) -> None:
    changes = SHORT | {"data__val_split": None, "data__test_split": None, "choices": [str(choices)]}
    child = nursery.start("train", [str(small_world.write_config(tmp_path, **changes))])
    assert child.wait() == 2 and "needs data.test_split or data.val_split" in child.output()

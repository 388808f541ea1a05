"""Mining with every rule at work: one process and two write the same bytes, and a killed run goes on as if it had not been."""

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.faults.runs import Run, assert_same, lines
from tests.nursery import ROOT, Nursery, Trap
from tests.small_job import SmallWorld

BLIP = str(ROOT / "demo" / "models" / "blip-itm")


def every_rule(folder: Path) -> dict[str, Any]:
    """A mining section that filters little out; the pool's file is written next to it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pool.txt").write_text("a purple hexagon\n\nA RED circle, at the left\nthere is a blue thing\n", encoding="utf-8")
    return {
        "mine_every_epochs": 1, "scope": "window", "negatives_per_image": 2, "weight": 0.5, "pool": str(folder / "pool.txt"),
        "pool_top_k": 30, "rank_max": 29, "near_duplicates": True, "max_score": 90.0, "margin": -6.0, "perc_pos": 1.0, "margin_pos": -0.5,
        "max_uses": 9, "selection": "softmax", "temperature": 3.0,
        "denoise": {"model": BLIP, "mode": "relabel", "threshold": 0.02, "relabel_threshold": 0.03},
        "distil": {"form": "lists", "strength": 0.7, "temperature": 2.0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def straight(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Undisturbed."""
    folder = tmp_path_factory.mktemp("straight")
    run = Run.make(nursery, small_world, folder, mining=every_rule(folder), train__max_steps=7, train__checkpoint_every_steps=3)
    run.finish()
    return run


def test_two_processes_write_what_one_writes(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    mining = every_rule(tmp_path)
    for name, world_size in (("one", 1), ("two", 2)):
        config = small_world.write_config(tmp_path / name, mining=mining)
        children = nursery.start_ranks("train.mining", [str(config)], world_size)
        assert [child.wait() for child in children] == [0] * world_size, "".join(child.output() for child in children)
    one, two = (sorted((tmp_path / name / "runs" / "job" / "negatives").iterdir()) for name in ("one", "two"))
    assert [path.suffix for path in one] == [".html", ".json", ".parquet"]
    assert [path.name for path in one] == [path.name for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    report = json.loads(one[1].read_text())
    table = pq.read_table(one[2])
    assert report["num_relabelled"] > 0 and report["num_judged"] > 0 and report["num_positives_mined"] == 0
    assert table["label"].to_pylist().count(1) == report["num_relabelled"] and "match" in table.column_names
    assert table.filter(pc.is_in(table["label"], pa.array([-1, 1, 2], pa.int8())))["matcher_logit"].null_count == 0
    assert "false negatives estimated by the cross-encoder" in children[0].output() and str(two[0].name) in children[0].output()


def test_a_run_with_every_rule_mines_each_epoch_from_the_pool_too(straight: Run) -> None:
    reports = [line for line in lines(straight.folder) if line["event"] == "mining"]
    assert [line["step"] for line in reports] == [0, 5] and reports[0]["num_before"] is None
    assert reports[1]["num_images"] == 16 and 0 < reports[1]["num_before"] < reports[0]["num_mined"]
    tables = [pq.read_table(straight.folder / "negatives" / f"{report['name']}.parquet") for report in reports]
    assert any(name.startswith("pool#") for table in tables for name in table["caption_id"].to_pylist())
    assert all((straight.folder / "negatives" / f"{report['name']}.html").is_file() for report in reports)


def test_killed_between_table_and_report_it_resumes_the_same(
    nursery: Nursery, small_world: SmallWorld, straight: Run, tmp_path: Path
) -> None:
    mining = every_rule(straight.config.parent)  # the same file of captions, so the same table
    run = Run.make(nursery, small_world, tmp_path, mining=mining, train__max_steps=7, train__checkpoint_every_steps=3)
    (child,) = run.start(trap=Trap("train.siglip.mining:write_mining_report", 2))
    assert child.wait() == -signal.SIGKILL, child.output()
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 2))  # once more, with the second table in force
    assert child.wait() == -signal.SIGKILL, child.output()
    run.finish()
    assert_same(run, straight)


def test_terminal_card_and_report_say_that_nothing_was_mined_and_that_the_export_saw_nothing_mined(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path
) -> None:
    """A margin that nothing passes; and steps so small that no checkpoint is better than that of step 0."""
    changes = {"mining__margin": 500.0, "train__learning_rate": 1e-12, "train__max_steps": 3}
    run = Run.make(nursery, small_world, tmp_path, **changes)
    (child,) = run.finish()
    few = "Mining found 0.00 captions an image on average, of 2 asked for (most candidates: within the margin)"
    unseen = "No step of this checkpoint (step 0) was trained with mined captions: mining began after step 0."
    report = json.loads((run.folder / "eval" / "test" / "report.json").read_text())
    notes = report["mining"]["notes"]
    assert [note.startswith(start) for note, start in zip(notes, (unseen, few), strict=True)] == [True, True]
    assert report["mining"]["mined_per_image"] == 0 and not report["mining"]["is_trained_with"]
    card, page = ((run.folder / name).read_text() for name in ("export/README.md", "eval/test/report.html"))
    (again,) = run.finish()
    said = [" ".join(one.output().split()) for one in (child, again)]  # lines are folded
    for note in notes:
        assert f"- Mining: {note}\n" in card and note in page
        assert all(f"mining {note}" in words for words in said)
    assert "mined negatives: none.\n" in card and f"warning: {few}" in child.output()
    alone = nursery.start("train.mining", [str(run.config), "name=alone"])
    assert alone.wait() == 0 and f"{few}, which is almost nothing to learn from." in alone.output()


def test_a_run_that_mines_enough_has_nothing_to_say_of_it(straight: Run) -> None:
    effect = json.loads((straight.folder / "eval" / "test" / "report.json").read_text())["mining"]
    lines_of_mining = [line for line in lines(straight.folder) if line["event"] == "mining"]
    assert (effect["num_refreshes"], effect["is_trained_with"], effect["notes"]) == (2, True, [])
    num_rows, num_images = (
        sum(line[key] for line in lines_of_mining for key in keys) for keys in (("num_mined", "num_relabelled"), ("num_images",))
    )
    assert effect["mined_per_image"] == num_rows / num_images

"""Retention sets (`watch`) in whole jobs: reported, barred, stopped; killed and resumed; and python -m train.wise on their output."""

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from eval.dataset.retrieval_set import RetrievalSet
from eval.search.ranking import DIRECTIONS
from tests.faults.runs import Run, assert_same, lines
from tests.nursery import Nursery, Trap
from tests.shared_files import SENTENCE_TRANSFORMERS_FILES
from tests.small_job import SmallWorld
from train.__main__ import run as run_job
from train.config.load import load_config
from train.engine.checkpoint import Checkpoints
from train.siglip.loop import Loop
from train.siglip.watch import Recall, RetentionResult, Watch

RATE = 0.3  # ruins what the base knew within three steps


@pytest.fixture(scope="module")
def knowing(small_world: SmallWorld, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows the train split: some steps from the tiny one."""
    changes: dict[str, Any] = {"mining": None, "train__max_steps": 80, "train__eval_every_steps": 80, "train__checkpoint_every_steps": 80}
    run = Run.make(nursery, small_world, tmp_path_factory.mktemp("knowing"), **changes, data__val_split=None)
    run.finish()
    return run.folder / "export"


def watched_run(nursery: Nursery, world: SmallWorld, base: Path, folder: Path, on_drop: str, world_size: int = 1, **changes: Any) -> Run:
    watch = [{"name": "old", "source": str(world.manifest), "split": "train", "on_drop": on_drop}]
    given = {"model__base": str(base), "train__learning_rate": RATE, "watch": watch} | changes
    return Run.make(nursery, world, folder, world_size, **given)


@pytest.fixture(scope="module")
def stopped(nursery: Nursery, small_world: SmallWorld, knowing: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """World size -> an undisturbed run that its retention set ends."""
    runs = {}
    for world_size in (1, 2):
        folder = tmp_path_factory.mktemp(f"stopped-{world_size}")
        runs[world_size] = watched_run(nursery, small_world, knowing, folder, "stop", world_size)
        runs[world_size].finish()
    return runs


def of(run: Run, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(run.folder) if line["event"] == event]


def test_a_drop_ends_the_run_with_a_message_and_the_best_is_exported(stopped: dict[int, Run], knowing: Path) -> None:
    run = stopped[1]
    seen = of(run, "watch")
    assert [(line["step"], line["name"], line["dropped"]) for line in seen] == [(0, "old", False), (3, "old", True)]
    assert seen[0]["delta"] == 0 and seen[1]["ci95"][1] < 0 and seen[1]["delta"] == pytest.approx(seen[1]["mean_R@1"] - seen[0]["mean_R@1"])
    assert of(run, "step")[-1]["step"] == 3 and not of(run, "eval")[1]["best"]
    exported, base = (load_file(folder / "model.safetensors") for folder in (run.folder / "export", knowing))
    assert all(exported[name].equal(base[name]) for name in base)  # step 0 is the best: the step that forgot was barred
    children = run.finish()  # the same command again
    said = children[0].output()
    assert "is finished" in said and "ended at step 3: the retention set 'old' was forgotten" in said and "watch old: mean R@1" in said


@pytest.mark.slow  # tests/unit/eval/embed/test_embedding_cache.py has it of an evaluation
def test_embeddings_of_the_base_are_made_once_a_machine_and_change_nothing(
    nursery: Nursery, small_world: SmallWorld, knowing: Path, stopped: dict[int, Run], tmp_path: Path
) -> None:
    """Two processes read what one made. Step 3 embeds val and the retention set; all else is of the base, which is the best too."""
    env = {"HF_ASSETS_CACHE": str(tmp_path / "assets"), "EMBEDDING_CACHE_GIB": "1"}
    for world_size, count in ((1, 2 * 4 + 4), (2, 4)):  # two sides each: of the base val, old, train and test; of step 3 val and old
        run = watched_run(nursery, small_world, knowing, tmp_path / str(world_size), "stop", world_size)
        trap = Trap("eval.encoder.encoder:_stream", count + 1)
        run.finish(env=env, **({"trap": trap} if world_size == 1 else {"traps": {0: trap, 1: trap}}))
        assert_same(run, stopped[world_size])
        assert not (run.folder / "negatives" / "base").exists()


def test_the_final_report_has_the_retention_set(stopped: dict[int, Run]) -> None:
    folder = stopped[1].folder / "eval"
    (section,) = json.loads((folder / "test" / "report.json").read_text())["watch"]
    own = json.loads((folder / "watch" / "old" / "report.json").read_text())
    assert (section["name"], section["on_drop"], section["dropped"]) == ("old", "stop", False)
    assert all(section[key] == own[key] for key in ("data", "stages", "comparisons")) and list(section["stages"]) == ["base", "tuned"]
    rows = pq.read_table(folder / "watch" / "old" / "queries.parquet").to_pylist()
    ranks = [row["rank"] for row in rows if (row["stage"], row["direction"]) == ("base", "text_to_image")]
    assert section["stages"]["base"]["text_to_image"]["R@1"] == pytest.approx(sum(rank == 1 for rank in ranks) / len(ranks))
    first = of(stopped[1], "watch")[0]["mean_R@1"]
    both = [section["stages"]["base"][direction]["R@1"] for direction in ("image_to_text", "text_to_image")]
    assert first == pytest.approx(sum(both) / 2)
    assert "watch old: mean R@1" in (folder / "test" / "report.html").read_text()


@pytest.mark.parametrize(
    ("world_size", "trap"),
    [
        (1, Trap("train.siglip.watch:measure_checkpoint", 2)),
        (1, Trap("train.siglip.loop:Watch.evaluate", 2, after=True)),
        (1, Trap("train.engine.metrics_log:MetricsLog.write", 9, after=True)),
        (1, Trap("train.engine.checkpoint:commit_folder", 4)),
        (1, Trap("train.siglip.finish:export_checkpoint", 1)),
        (1, Trap("rerank.evaluation:write_report", 1, after=True)),
        (1, Trap("train.siglip.finish:mark_ended", 1)),
        (2, Trap("train.siglip.loop:Watch.evaluate", 2, after=True)),
    ],
    ids=lambda value: value.function if isinstance(value, Trap) else str(value),
)
def test_killed_and_started_again_it_ends_the_same_way(
    nursery: Nursery, small_world: SmallWorld, knowing: Path, stopped: dict[int, Run], tmp_path: Path, world_size: int, trap: Trap
) -> None:
    run = watched_run(nursery, small_world, knowing, tmp_path, "stop", world_size)
    children = run.start(trap=trap) if world_size == 1 else run.start(traps={0: trap, 1: trap})
    assert [child.wait() for child in children] == [-signal.SIGKILL] * world_size, children[0].output()
    run.finish()
    assert_same(run, stopped[world_size])
    marks = [json.loads((one.folder / "finished.json").read_text()) for one in (run, stopped[world_size])]
    for mark in marks:  # of reports, which tell how long they took
        assert mark.pop("reports_sha256").keys() == {"eval/test/report.json", "eval/watch/old/report.json"}
    assert marks[0] == marks[1]


@pytest.mark.parametrize(("on_drop", "best_steps", "last"), [("report", [0, 3], 9), ("bar", [0, 9], 9), ("stop", [0], 3)])
def test_what_forgot_is_best_only_under_report(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_drop: str, best_steps: list[int], last: int
) -> None:
    """Val has 0.1, 0.4, 0.2, 0.3 at steps 0, 3, 6, 9, and the set has dropped at 3 and at 6."""
    watch = [{"name": "old", "source": str(small_world.manifest), "split": "train", "on_drop": on_drop}]
    config = small_world.write_config(tmp_path, watch=watch, mining=None)

    def look(watch: Watch, step: int, *_: Any) -> list[RetentionResult]:
        high = -0.1 if step in (3, 6) else 0.1
        return [RetentionResult(load_config(config).watch[0], Recall(0.5, [0.4, 0.6], -0.2, [-0.3, high]))]

    def measure(loop: Loop, val: RetrievalSet) -> dict[str, Any]:
        score = {0: 0.1, 3: 0.4, 6: 0.2, 9: 0.3}[loop.state.step]
        return {"split": val.split, "mean_R@1": score} | {direction: {"R@1": score} for direction in DIRECTIONS}

    monkeypatch.setattr(Watch, "evaluate", look)
    monkeypatch.setattr(Loop, "_measure_val", measure)
    assert run_job([str(config)]) == 0
    folder = tmp_path / "runs" / "job"
    assert [line["step"] for line in lines(folder) if line["event"] == "eval" and line["best"]] == best_steps
    assert [line["step"] for line in lines(folder) if line["event"] == "step"][-1] == last
    state = Checkpoints(folder / "checkpoints").newest()
    assert state is not None and state[0].best_step == best_steps[-1] and state[0].stopped_by == ("old" if on_drop == "stop" else None)
    card = (folder / "export" / "README.md").read_text()
    assert f"step {best_steps[-1]} of 9" in card


def wise(nursery: Nursery, run: Run, output: Path, *arguments: str) -> dict[str, Any]:
    child = nursery.start("train.wise", [str(run.folder), "--output", str(output), *arguments])
    assert child.wait() == 0, child.output()
    return json.loads((output / "wise.json").read_text())


@pytest.fixture(scope="module")
def learnt(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of which a later step is the best, full and with adapters."""
    runs = {}
    for kind, lora in (("full", None), ("lora", {"rank": 4, "alpha": 8})):
        folder = tmp_path_factory.mktemp(f"learnt-{kind}")
        runs[kind] = watched_run(
            nursery, small_world, small_world.base, folder, "report", model__lora=lora, train__learning_rate=1e-2, model__logit_bias=-5.0
        )
        runs[kind].finish()
    return runs


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_alpha_1_is_the_export_and_alpha_0_the_base(
    nursery: Nursery, small_world: SmallWorld, learnt: dict[str, Run], tmp_path: Path, kind: str
) -> None:
    run = learnt[kind]
    assert max(line["mean_R@1"] for line in of(run, "eval")) > of(run, "eval")[0]["mean_R@1"]
    record = wise(nursery, run, tmp_path / "one", "--keep", "1")
    assert record["kept"] == 1.0 and [row["alpha"] for row in record["sets"]["val"]] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    kept = tmp_path / "one" / "export"
    assert (kept / "model.safetensors").read_bytes() == (run.folder / "export" / "model.safetensors").read_bytes()
    wise(nursery, run, tmp_path / "zero", "--keep", "0", "--alphas", "0.5")
    zero, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "zero" / "export", small_world.base))
    assert zero.keys() == base.keys() and all(zero[name].numpy().tobytes() == base[name].numpy().tobytes() for name in base)
    cards = {name: (tmp_path / name / "export" / "README.md").read_text() for name in ("zero", "one")}
    assert "mined negatives: none." in cards["zero"] and "mined negatives: up to 2 hard captions per image" in cards["one"]
    # What is measured at the ends is what the run itself measured, of base and of its best checkpoint.
    best = next(line for line in reversed(of(run, "eval")) if line["best"])
    assert [record["sets"]["val"][place]["mean_R@1"] for place in (0, -1)] == [
        of(run, "eval")[0]["mean_R@1"],
        best["mean_R@1"] if kind == "full" else pytest.approx(best["mean_R@1"], abs=0.02),  # merged adapters round otherwise
    ]


def test_an_interpolated_model_is_written_with_its_card(nursery: Nursery, learnt: dict[str, Run], tmp_path: Path) -> None:
    run = learnt["full"]
    record = wise(nursery, run, tmp_path, "--alphas", "0.25,0.5", "--keep", "best")
    assert record["kept"] == record["best"] in (0.25, 0.5)
    card = (tmp_path / "export" / "README.md").read_text()
    assert f"alpha {record['kept']:g}" in card and "WiSE-FT" in card
    assert {path.name for path in (tmp_path / "export").iterdir()} >= SENTENCE_TRANSFORMERS_FILES
    own = next(row for row in record["sets"]["val"] if row["alpha"] == record["kept"])
    assert card.count("mean R@1 on val") == 1 and f"mean R@1 on val {100 * own['mean_R@1']:.2f}" in card
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"wise.json", "wise.png", "wise.svg", "val.parquet", "watch-old.parquet", "export"}
    rows = pq.read_table(tmp_path / "val.parquet").to_pylist()
    assert {row["stage"] for row in rows} == {"alpha=0.0", "alpha=0.25", "alpha=0.5"}
    recalls = []
    for direction in ("image_to_text", "text_to_image"):
        ranks = [row["rank"] for row in rows if (row["stage"], row["direction"]) == (f"alpha={record['kept']}", direction)]
        recalls.append(sum(rank == 1 for rank in ranks) / len(ranks))
    assert own["mean_R@1"] == pytest.approx(sum(recalls) / 2)


@pytest.mark.parametrize(("arguments", "words"), [(["--alphas", "0,2"], "from 0 to 1"), (["--keep", "worst"], "from 0 to 1")])
def test_an_alpha_that_is_none_is_refused(nursery: Nursery, tmp_path: Path, arguments: list[str], words: str) -> None:
    child = nursery.start("train.wise", [str(tmp_path), "--output", str(tmp_path / "out"), *arguments])
    assert child.wait() == 2 and words in child.output()


def test_a_run_without_val_or_without_checkpoints_is_refused(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, learnt: dict[str, Run]
) -> None:
    absent = nursery.start("train.wise", [str(tmp_path), "--output", str(tmp_path / "out")])
    assert absent.wait() == 2 and "config.yaml" in absent.output()
    run = Run.make(nursery, small_world, tmp_path, data__val_split=None, train__max_steps=2, mining=None)
    run.finish()
    child = nursery.start("train.wise", [str(run.folder), "--output", str(tmp_path / "out")])
    assert child.wait() == 2 and "data.val_split is null" in child.output()


def test_mining_alone_takes_a_job_with_watch_sets_and_names_their_faults(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    run = watched_run(nursery, small_world, small_world.base, tmp_path, "report")
    child = nursery.start("train.mining", [str(run.config)])
    assert child.wait() == 0 and "written to" in child.output()
    child = nursery.start("train.mining", [str(run.config), "watch=[{name: lost, source: absent.csv}]"])
    assert child.wait() == 2 and "retention set 'lost'" in child.output() and "absent.csv" in child.output()

"""Fixed checkpoints that mine, in whole commands: two processes write what one writes, and a killed run goes on as if it had not been."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.runs import Run, assert_same, lines
from tests.nursery import Nursery, Trap
from tests.small_job import TINY, SmallWorld, load
from tests.unit.train.mining.candidates_worker import approximate_is_here
from train.model.random_init import write_scratch


@pytest.fixture(scope="module")
def other(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another width, picture size and tokenizer."""
    folder = tmp_path_factory.mktemp("member") / "other"
    keys = {"image_size": 24, "width": 48, "vocab_size": 40, "num_tokens": 10}
    write_scratch(folder, TINY.model_copy(update=keys), load(small_world.manifest), seed=7)
    return folder


def section(other: Path, **keys: Any) -> dict[str, Any]:
    return {"mine_every_steps": 2, "negatives_per_image": 2, "pool_top_k": 30, "margin": None, "ensemble": [f"{other}:1.5"]} | keys


@pytest.mark.parametrize("keys", [{}, {"form": "images"}, {"index": "faiss", "index_probes": 3}], ids=["columns", "images", "faiss"])
def test_two_processes_write_what_one_writes(
    nursery: Nursery, small_world: SmallWorld, other: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    if "index" in keys and not approximate_is_here():
        pytest.skip("faiss is not installed")
    for name, world_size, ensemble in (("one", 1, [f"{other}:1.5"]), ("two", 2, [f"{other}:1.5"]), ("none", 1, [])):
        config = small_world.write_config(tmp_path / name, mining=section(other, ensemble=ensemble, **keys))
        children = nursery.start_ranks("train.mining", [str(config)], world_size)
        assert [child.wait() for child in children] == [0] * world_size, "".join(child.output() for child in children)
    one, two, none = (sorted((tmp_path / name / "runs" / "job" / "negatives").iterdir()) for name in ("one", "two", "none"))
    assert [path.name for path in one] == [path.name for path in two] and [path.suffix for path in one] == [".html", ".json", ".parquet"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert none[2].name != one[2].name and pq.read_table(none[2])["caption_id"] != pq.read_table(one[2])["caption_id"]
    assert json.loads(one[1].read_text())["num_positives_mined"] == 0


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_run_goes_on_the_same(nursery: Nursery, small_world: SmallWorld, other: Path, tmp_path: Path, world_size: int) -> None:
    changes: dict[str, Any] = {"mining": section(other), "train__max_steps": 5, "train__checkpoint_every_steps": 3}
    straight = Run.make(nursery, small_world, tmp_path / "straight", world_size, **changes)
    children = straight.finish()
    assert f"ensemble  {other}:1.5" in children[0].output()
    run = Run.make(nursery, small_world, tmp_path / "killed", world_size, **changes)
    trap = Trap("train.siglip.loop:refresh_negatives", 3)  # before step 5, after the checkpoint of step 3
    children = run.start(**({"trap": trap} if world_size == 1 else {"traps": {0: trap, 1: trap}}))
    assert [child.wait() for child in children] == [-signal.SIGKILL] * world_size, children[0].output()
    kept = {path: path.stat().st_mtime_ns for path in (run.folder / "ensemble").rglob("*.f32")}
    assert len(kept) == 2
    run.finish()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "embedded once in a run"
    assert_same(run, straight)
    mined = [line for line in lines(run.folder) if line["event"] == "mining"]
    assert [line["step"] for line in mined] == [0, 2, 4] and len({line["name"] for line in mined}) == 3


def test_other_weights_under_the_name_are_not_gone_on_with(nursery: Nursery, small_world: SmallWorld, other: Path, tmp_path: Path) -> None:
    member = tmp_path / "member"
    shutil.copytree(other, member)
    run = Run.make(nursery, small_world, tmp_path, mining=section(member), train__max_steps=4, train__checkpoint_every_steps=1)
    (child,) = run.start(trap=Trap("train.siglip.loop:refresh_negatives", 2))
    assert child.wait() == -signal.SIGKILL, child.output()
    weights = load_file(member / "model.safetensors")
    save_file(weights | {"logit_bias": weights["logit_bias"] + torch.tensor(1.0)}, member / "model.safetensors", {"format": "pt"})
    (child,) = run.start()
    assert child.wait() == 2 and "mining.ensemble" in child.output() and "give the run another name=" in child.output()
    shutil.rmtree(member)
    (child,) = run.start()
    assert child.wait() == 2 and f"mining.ensemble: '{member}'" in child.output(), child.output()

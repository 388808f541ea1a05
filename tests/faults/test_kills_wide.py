"""Exact resume (docs/guarantees.md) with three processes and cached micro-batches, with a frozen tower's cached rows, and with Muon."""

import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.faults.runs import Run, assert_same, steps_taken
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld

SHORT = {"train__max_steps": 4, "train__eval_every_steps": 4}
THREE = SHORT | {"train__batch_size": 9, "train__micro_batch_size": 2, "mining__mined_scope": "all"}
FROZEN = SHORT | {"model__freeze": ["image"], "model__lora": {"rank": 2, "dropout": 0.2}, "train__micro_batch_size": 3}
MOMENTS = {
    "while embedding": Trap("train.model.frozen_tower:embed_images", 1, after=True),
    "embedded, not named": Trap("train.model.frozen_tower:os.replace", 2),  # the first is of config.yaml
    "in a step": Trap("train.model.grad_cache:text_features", 40),
}


def test_three_processes_with_micro_batches(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    straight, run = (Run.make(nursery, small_world, tmp_path / name, 3, **THREE) for name in ("straight", "killed"))
    straight.finish()
    children = run.start(traps={2: Trap("train.model.grad_cache:image_features", 11)})  # 2 micro-batches, embedded twice: the third step
    assert children[2].wait() == -signal.SIGKILL
    for child in children[:2]:
        child.kill(signal.SIGKILL)
        child.wait()
    assert steps_taken(run.folder) == 2
    run.finish()
    assert_same(run, straight)


@pytest.mark.slow
def test_muon_by_two_processes_and_another_optimizer_from_its_checkpoint(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    changes = SHORT | {"train__optimizer": "muon", "model__freeze": ["text"], "train__checkpoint_every_steps": 2}
    straight, run = (Run.make(nursery, small_world, tmp_path / name, 2, **changes) for name in ("straight", "killed"))
    first, _ = straight.finish()
    assert "optimizer Muon for 0." in first.output()
    children = run.start(traps={0: Trap("train.optim.muon:Muon.step", 3)})
    assert children[0].wait() == -signal.SIGKILL
    children[1].kill(signal.SIGKILL)
    children[1].wait()
    assert steps_taken(run.folder) == 2
    run.finish()
    assert_same(run, straight)
    state = load_file(run.folder / "checkpoints" / "step-2" / "optimizer.safetensors")
    matrix = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert f"momentum.{matrix}" in state and f"exp_avg.{matrix}" not in state and "exp_avg.logit_scale" in state
    begun = SHORT | {"model__freeze": ["text"], "train__begin_at": str(run.folder / "checkpoints" / "step-2"), "mining": None}
    (child,) = Run.make(nursery, small_world, tmp_path / "begun", **begun).start()
    assert child.wait() == 2 and "has the state of another optimizer: take its train.optimizer" in child.output(), child.output()


@pytest.fixture(scope="module")
def straight_frozen(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.make(nursery, small_world, tmp_path_factory.mktemp("frozen"), **FROZEN)
    run.finish()
    return run


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_frozen_tower(nursery: Nursery, small_world: SmallWorld, tmp_path: Path, straight_frozen: Run, moment: str) -> None:
    run = Run.make(nursery, small_world, tmp_path, **FROZEN)
    (child,) = run.start(trap=MOMENTS[moment])
    assert child.wait() == -signal.SIGKILL, child.output()
    kept = list((run.folder / "frozen").glob("image-*.f32"))
    assert len(kept) == (moment == "in a step")
    times = [path.stat().st_mtime_ns for path in kept]
    run.finish()
    assert_same(run, straight_frozen)
    assert [path.stat().st_mtime_ns for path in kept] == times  # complete files were read, not made again


def test_two_processes_share_one_file_of_the_same_bytes(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, straight_frozen: Run
) -> None:
    pair = Run.make(nursery, small_world, tmp_path, 2, **FROZEN)
    children = pair.finish()
    assert "run once over the train split" in children[0].output()
    (one,), (two,) = (list((run.folder / "frozen").iterdir()) for run in (straight_frozen, pair))
    assert one.name == two.name and one.read_bytes() == two.read_bytes()

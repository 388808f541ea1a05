"""train.ema_decay: the averages are those of the weights of every step, are evaluated and exported, and a resumed run has their bits."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.encoder.checkpoint import load_siglip
from eval.metrics.evaluate import values_of
from eval.metrics.stage_metrics import mean_recall_at_1
from eval.search.retrieve import retrieve
from tests.faults.averages import EVERY_STEP, assert_averages, file_of
from tests.faults.runs import Run, assert_same, lines
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld, load
from tests.small_reranker_job import RerankerWorld
from train.config.load import read_run
from train.siglip.export import export_checkpoint

DECAY = 0.9
AVERAGED: dict[str, Any] = EVERY_STEP | {"train__ema_decay": DECAY}
# As in test_kills.py: 9 steps; evaluations at 0, 3, 6, 9; minings at 0, 4, 8. Each checkpoint writes three files.
MOMENTS = {
    "weights moved, average not": Trap("train.siglip.step:Stepper.train_step", 5, after=True),
    "average moved, line not written": Trap("train.optim.ema:WeightAverage.update", 7, after=True),
    "between optimizer state and average": Trap("train.engine.checkpoint:save_file", 15),
    "told to stop in an evaluation": Trap("train.siglip.loop:retrieve", 2, signal.SIGTERM),
    "killed in an evaluation": Trap("train.siglip.loop:retrieve", 3),
    "told to stop in a mining": Trap("train.siglip.mining:mine", 2, signal.SIGTERM),
}


def straight_of(nursery: Nursery, world: SmallWorld, folder: Path, world_size: int = 1, **changes: Any) -> Run:
    run = Run.make(nursery, world, folder, world_size, **AVERAGED | changes)
    run.finish()
    return run


@pytest.fixture(scope="module")
def averaged(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """World size -> an undisturbed run."""
    return {size: straight_of(nursery, small_world, tmp_path_factory.mktemp(f"averaged-{size}"), size) for size in (1, 2)}


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_averages_are_the_recursion_over_the_weights(averaged: dict[int, Run], world_size: int) -> None:
    assert_averages(averaged[world_size].folder, DECAY, 9)


def test_two_processes_average_what_one_does(averaged: dict[int, Run]) -> None:
    """As near as their weights are, at the first steps (see test_kills.py)."""
    one, two = (file_of(averaged[size].folder, 1, "average") for size in (1, 2))
    near = [np.linalg.norm(one[name] - two[name]) for name in one]
    assert np.linalg.norm(near) < 1e-3 * np.linalg.norm([np.linalg.norm(value) for value in one.values()])


def test_training_and_mining_are_those_of_a_run_without(averaged: dict[int, Run], straight: dict[int, Run]) -> None:
    """The average changes no loss and no mined caption, bit for bit; only evaluations are of other weights."""
    keys = {"step": ("step", "loss", "grad_norm"), "mining": ("step", "num_mined"), "eval": ("step", "mean_R@1")}
    for world_size in (1, 2):
        found, plain = (
            {event: [[line[key] for key in keys[event]] for line in lines(run.folder) if line["event"] == event] for event in keys}
            for run in (averaged[world_size], straight[world_size])
        )
        assert found["step"] == plain["step"] and len(found["step"]) == 9
        assert found["mining"] == plain["mining"] and len(found["mining"]) == 3
        assert found["eval"][0] == plain["eval"][0] and found["eval"] != plain["eval"]
    named = [line.get("weights") for run in (averaged[1], straight[1]) for line in lines(run.folder) if line["event"] == "eval"]
    assert named == ["ema"] * 4 + [None] * 4


def test_what_is_evaluated_is_what_is_exported(averaged: dict[int, Run], small_world: SmallWorld, tmp_path: Path) -> None:
    folder, val = averaged[1].folder, load(small_world.manifest, "val")
    evals = {line["step"]: line for line in lines(folder) if line["event"] == "eval"}
    best = max(step for step, line in evals.items() if line["best"])
    assert best > 0
    config = read_run(folder)
    places = {best: folder / "export"}
    for step in (3, 6, 9):
        if step != best:
            assert export_checkpoint(config, str(step), tmp_path / str(step)) == step
            places[step] = tmp_path / str(step)
    for step, place in places.items():
        siglip, inputs = load_siglip(str(place))
        averages = file_of(folder, step, "average")
        state = siglip.state_dict()
        assert state.keys() == averages.keys() and all(np.array_equal(state[name].numpy(), value) for name, value in averages.items())
        assert mean_recall_at_1(values_of(val, retrieve("now", siglip, inputs, val))) == evals[step]["mean_R@1"]
    assert "moving average over the steps (EMA), of decay 0.9." in (folder / "export" / "README.md").read_text()


IN_SHORT = ("average moved, line not written", "told to stop in an evaluation")
"""The option is off, and what it shares with every run is tested there (test_kills.py); the other moments take -m slow."""


@pytest.mark.parametrize("moment", [pytest.param(name, marks=[] if name in IN_SHORT else [pytest.mark.slow]) for name in MOMENTS])
def test_a_disturbed_run_has_the_bits_of_the_straight_one(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, averaged: dict[int, Run], moment: str
) -> None:
    run, trap = Run.make(nursery, small_world, tmp_path, **AVERAGED), MOMENTS[moment]
    (child,) = run.start(trap=trap)
    assert child.wait() == (143 if trap.signal == signal.SIGTERM else -signal.SIGKILL), child.output()
    run.finish()
    assert_same(run, averaged[1])
    assert_same_averages(run, averaged[1], 9)


def test_two_told_to_stop_in_an_evaluation_and_then_killed(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, averaged: dict[int, Run]
) -> None:
    run = Run.make(nursery, small_world, tmp_path, 2, **AVERAGED)
    children = run.start(traps={1: Trap("train.siglip.loop:retrieve", 2, signal.SIGTERM)})
    assert [child.wait() for child in children] == [143, 143], "".join(child.output() for child in children)
    children = run.start(traps={0: Trap("train.optim.ema:WeightAverage.update", 2)})
    assert children[0].wait() == -signal.SIGKILL
    children[1].kill(signal.SIGKILL)
    children[1].wait()
    run.finish()
    assert_same(run, averaged[2])
    assert_same_averages(run, averaged[2], 9)


def assert_same_averages(found: Run, straight: Run, last: int) -> None:
    for step in range(last + 1):
        one, two = (run.folder / "checkpoints" / f"step-{step}" / "average.safetensors" for run in (found, straight))
        assert one.read_bytes() == two.read_bytes(), step


def test_adapters_a_frozen_tower_and_micro_batches(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    """Once in a step, whatever the micro-batches; of what trains alone."""
    changes = {"model__freeze": ["image"], "model__lora": {"rank": 2, "dropout": 0.2}, "train__micro_batch_size": 3, "train__max_steps": 4}
    straight = straight_of(nursery, small_world, tmp_path / "straight", **changes)
    assert_averages(straight.folder, DECAY, 4)
    names = file_of(straight.folder, 4, "average").keys()
    assert {"logit_scale", "logit_bias"} <= names and all(".lora_" in name for name in names - {"logit_scale", "logit_bias"})
    assert not any(name.startswith("vision_model.") for name in names)
    run = Run.make(nursery, small_world, tmp_path / "stopped", **AVERAGED | changes)
    (child,) = run.start(trap=Trap("train.siglip.loop:retrieve", 2, signal.SIGTERM))
    assert child.wait() == 143, child.output()
    run.finish()
    assert_same(run, straight)


def test_a_reranker_is_averaged_too(nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path) -> None:
    straight = straight_of(nursery, reranker_world, tmp_path / "straight")
    assert_averages(straight.folder, DECAY, 6)
    run = Run.make(nursery, reranker_world, tmp_path / "stopped", **AVERAGED)
    (child,) = run.start(trap=Trap("train.reranker.loop:measure_cross_encoder", 2, signal.SIGTERM))
    assert child.wait() == 143, child.output()
    run.finish()
    assert_same(run, straight)
    assert "moving average over the steps (EMA), of decay 0.9." in (run.folder / "export" / "README.md").read_text()


@pytest.mark.parametrize("decay", ["null", "0.8"])
def test_another_decay_is_refused_under_the_same_name(nursery: Nursery, small_world: SmallWorld, tmp_path: Path, decay: str) -> None:
    run = Run.make(nursery, small_world, tmp_path, **AVERAGED, train__max_steps=2, mining=None, data__val_split=None, data__test_split=None)
    run.finish()
    for gone in (False, True):
        if gone:  # the checkpoints themselves know it
            (run.folder / "config.yaml").unlink()
        child = nursery.start("train", [str(run.config), f"train.ema_decay={decay}"])
        assert child.wait() == 2 and "train.ema_decay: 0.9 -> " in child.output(), child.output()


def test_a_run_that_begins_at_a_checkpoint_averages_anew(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, averaged: dict[int, Run]
) -> None:
    """From the weights that the optimizer state is of, not from their averages; and, resumed, with the factors of its own steps."""
    old = averaged[1].folder / "checkpoints" / "step-6"
    run = Run.make(nursery, small_world, tmp_path, **AVERAGED, train__begin_at=str(old), train__max_steps=3, mining=None)
    (child,) = run.start(trap=Trap("train.optim.ema:WeightAverage.update", 2))
    assert child.wait() == -signal.SIGKILL, child.output()
    run.finish()
    begun, weights = file_of(run.folder, 0, "average"), file_of(averaged[1].folder, 6, "weights")
    assert all(np.array_equal(begun[name], weights[name]) for name in begun)
    assert_averages(run.folder, DECAY, 3)

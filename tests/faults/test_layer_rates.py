"""train.layer_decay: the moments of each layer come back to it, so that a killed run is the straight one; and another one is refused."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Run, assert_same, lines
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld

DECAYED: dict[str, Any] = {"train__max_steps": 5, "train__eval_every_steps": 5, "mining": None, "train__layer_decay": 0.5}


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_has_the_bits_of_the_straight_one(nursery: Nursery, small_world: SmallWorld, tmp_path: Path, world_size: int) -> None:
    straight, run = (Run.make(nursery, small_world, tmp_path / name, world_size, **DECAYED) for name in ("straight", "killed"))
    told = "rates     x 0.5 for every layer above, peak from lowest to highest layer: text tower 0.000375 to 0.003; image tower 0.000375"
    assert told in straight.finish()[0].output()  # two layers: the embeddings have three above
    trap = Trap("train.siglip.step:Stepper.train_step", 4)
    children = run.start(trap=trap) if world_size == 1 else run.start(traps={1: trap})
    assert children[-1].wait() == -signal.SIGKILL
    for other in children[:-1]:
        other.kill(signal.SIGKILL)
        other.wait()
    assert [line["step"] for line in lines(run.folder) if line["event"] == "step"] == [1, 2, 3]
    run.finish()
    assert_same(run, straight)


def test_it_trains_another_model_and_another_one_is_refused(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    run, plain = (
        Run.make(nursery, small_world, tmp_path / name, **DECAYED | changes)
        for name, changes in (("decayed", {}), ("plain", {"train__layer_decay": None}))
    )
    run.finish()
    plain.finish()
    found, expected = ([line for line in lines(one.folder) if line["event"] == "step"] for one in (run, plain))
    assert found[0]["loss"] == expected[0]["loss"] and found[1]["loss"] != expected[1]["loss"]
    assert [line["learning_rate"] for line in found] == [line["learning_rate"] for line in expected]  # those of the highest layers
    for gone in (False, True):
        if gone:  # the checkpoints themselves know it
            (run.folder / "config.yaml").unlink()
        refused = nursery.start("train", [str(run.config), "train.layer_decay=0.6"])
        assert refused.wait() == 2 and "train.layer_decay: 0.5 -> 0.6" in refused.output(), refused.output()

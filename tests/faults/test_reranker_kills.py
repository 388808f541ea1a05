"""Exact resume (docs/guarantees.md) of a reranker's tuning: killed and started again by the same command, a run is the straight one."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.runs import Run, assert_same, lines, steps_taken
from tests.nursery import Nursery, Trap
from tests.small_job import TINY, load
from tests.small_reranker_job import RerankerWorld
from train.model.random_init import write_scratch

# 6 steps; evaluations at 0, 3, 6; checkpoints every 2 steps and at a new best.
MOMENTS = {
    "in the mining": Trap("train.reranker.negatives:write_negatives", 2),
    "mined, not yet evaluated": Trap("train.reranker.negatives:write_mining_report", 2, after=True),
    "weights moved, line not written": Trap("train.reranker.step:MatchStepper.train_step", 5, after=True),
    "in an evaluation": Trap("train.reranker.loop:measure_cross_encoder", 2),
    "exported, not measured": Trap("train.reranker.finish:export_cross_encoder", 1, after=True),
}


@pytest.fixture(scope="module")
def straight_tuning(nursery: Nursery, reranker_world: RerankerWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.make(nursery, reranker_world, tmp_path_factory.mktemp("straight-reranker"))
    run.finish()
    return run


@pytest.fixture
def tuning(nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path) -> Run:
    return Run.make(nursery, reranker_world, tmp_path, data__num_workers=1)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_chosen_moment(tuning: Run, straight_tuning: Run, moment: str) -> None:
    (child,) = tuning.start(trap=MOMENTS[moment])
    assert child.wait() == -signal.SIGKILL, child.output()
    tuning.finish()
    assert_same(tuning, straight_tuning)


def test_stopped_and_killed_at_random_moments(tuning: Run, straight_tuning: Run) -> None:
    draws, target = random.Random(7), 1
    for number in (signal.SIGTERM, signal.SIGKILL):
        (child,) = tuning.start()
        child.wait_until(lambda least=target: len(lines(tuning.folder)) > 0 and steps_taken(tuning.folder) >= least)
        time.sleep(draws.random() * 0.05)
        child.kill(number)
        assert child.wait() == (143 if number == signal.SIGTERM else -number), child.output()
        target = min(steps_taken(tuning.folder) + 1, 4)
    tuning.finish()
    assert_same(tuning, straight_tuning)


def test_another_miner_is_refused_on_resume(nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path) -> None:
    """Its folder has the same name, and other weights."""
    miner = tmp_path / "miner"
    shutil.copytree(reranker_world.base, miner)
    run = Run.make(nursery, reranker_world, tmp_path, miner=str(miner))
    (child,) = run.start(trap=Trap("train.reranker.step:MatchStepper.train_step", 4))
    assert child.wait() == -signal.SIGKILL
    shutil.rmtree(miner)
    write_scratch(miner, TINY, load(reranker_world.manifest), seed=9)
    (child,) = run.start()
    assert child.wait() == 2 and f"{miner} has other weights than when" in child.output()


def test_one_of_two_processes_killed_is_two_straight_ones(nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path) -> None:
    pair, straight = (Run.make(nursery, reranker_world, tmp_path / name, world_size=2) for name in ("disturbed", "straight"))
    straight.finish()
    children = pair.start(traps={1: Trap("train.reranker.step:MatchStepper.train_step", 4)})
    assert children[1].wait() == -signal.SIGKILL
    children[0].kill(signal.SIGKILL)
    children[0].wait()
    assert 0 < steps_taken(pair.folder) < 6
    pair.finish()
    assert_same(pair, straight)

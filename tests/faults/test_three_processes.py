"""Exact resume (docs/guarantees.md) on three processes, the first number at which the order of a sum can differ (docs/numerics.md);
gradients are summed in several segments while the backward pass runs."""

import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.runs import Run, assert_same, lines, steps_taken
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld


def in_segments(run: Run) -> Run:
    return replace(run, module="tests.faults.in_segments")


@pytest.fixture(scope="module")
def straight_three(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The undisturbed run."""
    run = in_segments(Run.make(nursery, small_world, tmp_path_factory.mktemp("straight-3"), world_size=3, train__batch_size=9))
    run.finish()
    return run


@pytest.fixture
def three(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> Run:
    """The same job, to be disturbed."""
    return in_segments(Run.make(nursery, small_world, tmp_path, world_size=3, train__batch_size=9))


def test_the_straight_run_is_of_three_and_mines(straight_three: Run) -> None:
    start, *rest = lines(straight_three.folder)
    steps = [line for line in rest if line["event"] == "step"]
    assert start["world_size"] == 3 and [line["step"] for line in steps] == list(range(1, 10))
    assert all(line["num_mined"] > 0 for line in steps) and steps[-1]["loss"] < steps[0]["loss"]


def test_one_of_three_killed_in_the_middle_of_a_step(three: Run, straight_three: Run) -> None:
    """Its gradients are there and summed with nobody's; the others are ended by their launcher."""
    children = three.start(traps={2: Trap("train.optim.update:Gradients.sum_over_processes", 6)})
    assert children[2].wait() == -signal.SIGKILL, children[2].output()
    for child in children[:2]:
        child.kill(signal.SIGKILL)
        child.wait()
    assert steps_taken(three.folder) == 5
    three.finish()
    assert_same(three, straight_three)


def test_three_killed_at_a_random_moment(three: Run, straight_three: Run) -> None:
    draws = random.Random(3)
    target = draws.randint(2, 6)
    children = three.start()
    children[0].wait_until(lambda: steps_taken(three.folder) >= target)
    time.sleep(draws.random() * 0.2)
    for child in children:
        child.kill(signal.SIGKILL)
    assert {child.wait() for child in children} == {-signal.SIGKILL}
    three.finish()
    assert_same(three, straight_three)

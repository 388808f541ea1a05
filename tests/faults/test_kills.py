"""Exact resume (docs/guarantees.md): killed at any moment and started again by the same command, a run is the straight one."""

import random
import signal
import time

import pytest

from tests.faults.runs import Run, assert_same, lines, said, steps_taken
from tests.nursery import Trap

# Each phase of a run, and in particular each moment between two writes that belong together. The job: 9 steps; evaluations at 0, 3, 6, 9;
# minings at 0, 4, 8; checkpoints every 2 steps and at a new best.
MOMENTS = {
    "before the first checkpoint": Trap("train.engine.checkpoint:save_file", 1),
    "first checkpoint without its name": Trap("train.engine.checkpoint:commit_folder", 1),
    "first checkpoint and its successor have changed places": Trap("eval.atomic:_exchange", 1, after=True),
    "in the first mining": Trap("train.mining.candidates:stream_search", 1),
    "table written, not yet in the log": Trap("train.siglip.mining:write_negatives", 2, after=True),
    "table half committed": Trap("eval.atomic:os.replace", 2),
    "in a forward pass": Trap("train.model.grad_cache:image_features", 5),
    "after the backward pass": Trap("train.optim.update:Gradients.sum_over_processes", 6),
    "weights moved, line not written": Trap("train.siglip.step:Stepper.train_step", 7, after=True),
    "line written, checkpoint not": Trap("train.engine.metrics_log:MetricsLog.sync", 5),
    "between weights and optimizer state": Trap("train.engine.checkpoint:save_file", 8),
    "checkpoint sealed, not named": Trap("train.engine.checkpoint:commit_folder", 4),
    "checkpoint named, old ones not pruned": Trap("train.engine.checkpoint:Checkpoints.prune", 6),
    "half pruned": Trap("train.engine.checkpoint:remove_folder", 2, after=True),
    "in an evaluation": Trap("train.siglip.loop:retrieve", 3),
    "evaluated, not yet said": Trap("train.siglip.loop:values_of", 3, after=True),
    "before the export": Trap("train.siglip.finish:export_checkpoint", 1),
    "export half written": Trap("train.siglip.export:write_plain", 1, after=True),
    "exported, not measured": Trap("train.siglip.finish:export_checkpoint", 1, after=True),
    "measured, not reported": Trap("rerank.evaluation:write_report", 1),
    "reported, not marked as finished": Trap("train.siglip.finish:mark_ended", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_chosen_moment(run: Run, straight: dict[int, Run], moment: str) -> None:
    (child,) = run.start(trap=MOMENTS[moment])
    assert child.wait() == -signal.SIGKILL, child.output()
    run.finish()
    assert_same(run, straight[1])


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(run: Run, straight: dict[int, Run], seed: int) -> None:
    """SIGKILL and SIGTERM in turn, each some time after a random step, until one comes too late."""
    draws = random.Random(seed)
    target = draws.randint(0, 3)
    for number in (signal.SIGKILL, signal.SIGTERM) if seed % 2 else (signal.SIGTERM, signal.SIGKILL):
        (child,) = run.start()
        child.wait_until(lambda least=target: len(lines(run.folder)) > 0 and steps_taken(run.folder) >= least)
        time.sleep(draws.random() * 0.2)
        child.kill(number)
        code = child.wait()
        assert code == (143 if number == signal.SIGTERM else -number), child.output()
        target = min(steps_taken(run.folder) + draws.randint(1, 3), 7)
    run.finish()
    assert_same(run, straight[1])


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_killed(pair: Run, straight: dict[int, Run], victim: int) -> None:
    """As when a machine dies: one process is gone at once, the launcher ends the other, then everything is started again."""
    children = pair.start(traps={victim: Trap("train.model.grad_cache:image_features", 5)})
    assert children[victim].wait() == -signal.SIGKILL
    children[1 - victim].kill(signal.SIGKILL)
    children[1 - victim].wait()
    assert 0 < steps_taken(pair.folder) < 9
    pair.finish()
    assert_same(pair, straight[2])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_two_killed_at_random_moments(pair: Run, straight: dict[int, Run], number: signal.Signals) -> None:
    draws = random.Random(10)
    children = pair.start()
    target = draws.randint(1, 6)
    children[0].wait_until(lambda: steps_taken(pair.folder) >= target)
    time.sleep(draws.random() * 0.2)
    for child in children:
        child.kill(number)
    codes = [child.wait() for child in children]
    assert codes == [143 if number == signal.SIGTERM else -number] * 2, "".join(child.output() for child in children)
    pair.finish()
    assert_same(pair, straight[2])


def test_a_straight_run_is_the_same_twice_and_on_two_processes_nearly(straight: dict[int, Run], run: Run) -> None:
    """What the comparisons above rest on: they are of runs that did learn, and of more than one process."""
    run.finish()
    assert said(run.folder) == said(straight[1].folder)
    starts = {world: lines(job.folder)[0]["world_size"] for world, job in straight.items()}
    assert starts == {1: 1, 2: 2}
    losses = {world: [line["loss"] for line in lines(job.folder) if line["event"] == "step"] for world, job in straight.items()}
    assert len(losses[1]) == 9 and losses[1][-1] < losses[1][0] / 2
    assert losses[2][:2] == pytest.approx(losses[1][:2], rel=1e-5)
    exported = next(line for line in reversed(lines(straight[1].folder)) if line["event"] == "eval" and line["best"])
    assert exported["step"] > 0

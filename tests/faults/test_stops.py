"""Stop signals: a checkpoint, the exit code, and a resumed run equal to an undisturbed one."""

import signal
from pathlib import Path

import pytest

from tests.faults.runs import Run, assert_same, lines
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld
from train.engine.checkpoint import Checkpoints

PLACES = {
    "in a step": (Trap("train.model.grad_cache:image_features", 4, signal.SIGTERM), 4),
    "in the first evaluation": (Trap("train.siglip.loop:retrieve", 1, signal.SIGTERM), 0),
    "in a later evaluation": (Trap("train.siglip.loop:retrieve", 2, signal.SIGTERM), 3),
    "in a mining": (Trap("train.siglip.mining:mine", 2, signal.SIGTERM), 4),
    "while a checkpoint is written": (Trap("train.engine.checkpoint:save_file", 6, signal.SIGTERM), None),
    "in the last step": (Trap("train.model.grad_cache:image_features", 9, signal.SIGTERM), None),
    "in the last evaluation": (Trap("train.siglip.loop:retrieve", 4, signal.SIGTERM), 9),
    "in the final measurement": (Trap("rerank.combine.embedded_sets:embed", 2, signal.SIGTERM), 9),
}


@pytest.mark.parametrize("place", PLACES)
def test_sigterm(run: Run, straight: dict[int, Run], place: str) -> None:
    trap, step = PLACES[place]
    (child,) = run.start(trap=trap)
    assert child.wait() == 143, child.output()
    found = Checkpoints(run.folder / "checkpoints").newest()
    assert found is not None and found[1] == [] and (step is None or found[0].step == step)
    assert f"stopped: after step {found[0].step}; the same command goes on from there" in child.output()
    assert "Traceback" not in child.output()
    again = run.finish()[0]
    assert f"resuming job at step {found[0].step}" in again.output()
    assert_same(run, straight[1])


@pytest.mark.parametrize(
    "function",
    [
        "train.siglip.loop:retrieve",
        "train.siglip.mining:mine",
        "rerank.combine.embedded_sets:embed",
        "train.model.grad_cache:image_features",
    ],
)
def test_sigterm_to_two(pair: Run, straight: dict[int, Run], function: str) -> None:
    """Both are told at the same place; the main process writes, and neither ends before that or is left waiting."""
    children = pair.start(traps={rank: Trap(function, 2, signal.SIGTERM) for rank in (0, 1)})
    codes = [child.wait() for child in children]
    assert codes == [143, 143], "".join(child.output() for child in children)
    assert "Traceback" not in children[0].output() + children[1].output()
    pair.finish()
    assert_same(pair, straight[2])


@pytest.mark.parametrize(
    ("function", "rank"),
    [
        ("train.siglip.loop:retrieve", 1),
        ("train.siglip.mining:mine", 1),
        ("rerank.combine.embedded_sets:embed", 1),
        ("train.engine.checkpoint:save_file", 0),
    ],
)
def test_a_stop_that_one_of_two_is_told_of_is_agreed_on(pair: Run, straight: dict[int, Run], function: str, rank: int) -> None:
    """In an evaluation, a mining, the final measurement, a checkpoint: the other learns of it there, and neither finds the other gone."""
    children = pair.start(traps={rank: Trap(function, 2, signal.SIGTERM)})
    assert [child.wait() for child in children] == [143, 143], "".join(child.output() for child in children)
    said = children[0].output() + children[1].output()
    assert "the same command goes on from there" in children[0].output() and "Traceback" not in said and "lost the other" not in said
    pair.finish()
    assert_same(pair, straight[2])


@pytest.mark.parametrize(
    ("function", "victim"),
    [("train.siglip.loop:retrieve", 1), pytest.param("train.model.grad_cache:image_features", 0, marks=pytest.mark.slow)],
)
def test_one_of_two_that_hangs_ends_the_other_within_its_limit(pair: Run, straight: dict[int, Run], function: str, victim: int) -> None:
    """In an evaluation, where a flag is waited for, and in a step, where gradients are."""
    words, traps = [str(pair.config), "train.timeout_seconds=5"], {victim: Trap(function, 3, signal.SIGSTOP)}
    stuck = pair.nursery.start_ranks("train", words, 2, traps=traps)
    assert stuck[1 - victim].wait() == 1
    assert "lost the other processes" in stuck[1 - victim].output()
    stuck[victim].kill(signal.SIGKILL)
    assert stuck[victim].wait() == -signal.SIGKILL
    pair.finish()
    assert_same(pair, straight[2])


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_of_two_stops_both_after_the_step(pair: Run, straight: dict[int, Run], rank: int) -> None:
    children = pair.start(traps={rank: Trap("train.model.grad_cache:image_features", 5, signal.SIGTERM)})
    assert [child.wait() for child in children] == [143, 143], "".join(child.output() for child in children)
    pair.finish()
    assert_same(pair, straight[2])


def test_ctrl_c(run: Run, straight: dict[int, Run]) -> None:
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 4, signal.SIGINT))
    assert child.wait() == 130, child.output()
    run.finish()
    assert_same(run, straight[1])


def test_the_exit_code_is_written_where_the_launcher_reads_it(run: Run, nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    mark = tmp_path / "exit"
    (child,) = run.start(env={"TRAIN_EXIT_FILE": str(mark)}, trap=Trap("train.model.grad_cache:image_features", 2, signal.SIGTERM))
    assert child.wait() == 143 and (tmp_path / "exit.0").read_text() == "143\n"
    refused = nursery.start("train", [str(run.config), "train.max_steps=no"], env={"TRAIN_EXIT_FILE": str(mark)})
    assert refused.wait() == 2 and (tmp_path / "exit.0").read_text() == "2\n"
    assert nursery.start("train", ["--no-such"], env={"TRAIN_EXIT_FILE": str(mark), "RANK": "0"}).wait() == 2
    run.finish(env={"TRAIN_EXIT_FILE": str(mark)})
    assert (tmp_path / "exit.0").read_text() == "0\n"


def test_resumed_on_another_number_of_processes_it_trains_on_the_same(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, straight: dict[int, Run]
) -> None:
    run = Run.make(nursery, small_world, tmp_path)
    (child,) = run.start(trap=Trap("train.model.grad_cache:image_features", 2, signal.SIGTERM))
    assert child.wait() == 143
    Run(nursery, run.config, world_size=2).finish()
    found, expected = (
        [(line["step"], line["loss"]) for line in lines(job.folder) if line["event"] == "step"] for job in (run, straight[1])
    )
    assert [step for step, _ in found] == [step for step, _ in expected] == list(range(1, 10))
    assert found[2][1] == pytest.approx(expected[2][1], rel=1e-5)  # the first step of two processes, after two of one

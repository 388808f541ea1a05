"""A container's small /dev/shm: a run goes on, says what it does without it, and heeds signals while it waits for its workers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.runs import Run, assert_same, lines, steps_taken
from tests.nursery import Nursery, Trap
from tests.small_job import TINY, SmallWorld, load
from train.model.random_init import write_scratch

ROOT = Path(__file__).parents[2]
LARGE = TINY.model_copy(update={"image_size": 384, "patch_size": 192})


def in_container(megabytes: int, *command: str) -> list[str]:
    """The command with a /dev/shm of so many megabytes of its own."""
    script = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "bash", "-c", script, "container", *command]


@pytest.fixture(scope="module")
def large_world(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """A base of pictures of 384 x 384: a batch of 40 as float32 takes 67 MiB."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount namespace needs root and unshare of util-linux")
    if subprocess.run(in_container(1, "true"), capture_output=True).returncode:
        pytest.skip("a mount namespace cannot be made here")
    base = tmp_path_factory.mktemp("large") / "base"
    write_scratch(base, LARGE, load(small_world.manifest), seed=1)
    return SmallWorld(small_world.manifest, base)


CHANGES = {"train__max_steps": 4, "train__batch_size": 40, "train__warmup_steps": 1, "train__eval_every_steps": 4, "data__num_workers": 2}


@pytest.fixture(scope="module")
def straight(large_world: SmallWorld, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run elsewhere, without workers."""
    run = Run.make(nursery, large_world, tmp_path_factory.mktemp("straight"), **{**CHANGES, "data__num_workers": 0})
    run.finish()
    return run


@pytest.mark.parametrize("megabytes", [pytest.param(64, marks=pytest.mark.slow), 16])
def test_training_in_a_container_with_little_shared_memory_is_training_elsewhere(
    straight: Run, large_world: SmallWorld, nursery: Nursery, tmp_path: Path, megabytes: int
) -> None:
    """In 64 MB, Docker's own, two workers' bytes have room; in 16 MB they go through pipes. As float32 the first step never came."""
    run = Run.make(nursery, large_world, tmp_path / "contained", **CHANGES)
    done = subprocess.run(
        in_container(megabytes, sys.executable, "-m", "train", str(run.config)),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and steps_taken(run.folder) == 4, done.stderr
    assert "Traceback" not in done.stderr
    told = "warning: /dev/shm has 16 MiB free; 2 worker(s) need up to"
    assert (told in done.stderr and "--shm-size" in done.stderr) == (megabytes == 16), done.stderr
    assert_same(run, straight)


NEVER = "train.data.batches:BatchBuilder._build"


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_waits_for_its_workers_for_ever_stops_with_a_checkpoint(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, world_size: int
) -> None:
    """Each worker stops at the fourth part it is to make; the signal comes to one process only."""
    changes = {"data__num_workers": 1, "mining": None, "data__val_split": None, "data__test_split": None}
    run = Run.make(nursery, small_world, tmp_path, world_size, **changes)
    stuck = Trap(NEVER, 4, signal.SIGSTOP)
    children = run.start(trap=stuck) if world_size == 1 else run.start(traps={0: stuck, 1: stuck})
    for child in children:
        child.wait_until(lambda pid=child.pid: [one.status() for one in psutil.Process(pid).children()] == [psutil.STATUS_STOPPED])
    time.sleep(0.5)  # the steps whose parts are there are taken
    taken = steps_taken(run.folder)
    children[0].kill(signal.SIGTERM)
    if world_size == 2:
        children[1].kill(signal.SIGUSR1)
    assert [child.wait() for child in children] == [143] * world_size, children[0].output()
    assert taken < 4 and f"stopped: after step {taken}" in children[0].output()
    assert "Traceback" not in "".join(child.output() for child in children)
    run.finish()
    assert [line["step"] for line in lines(run.folder) if line["event"] == "step"] == list(range(1, 10))

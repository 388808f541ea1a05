"""Two machines (network namespaces, gloo): the losses of one, stops, the loss of a machine, resumes, and disks they do not share."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.runs import Run, assert_same, lines, steps_taken
from tests.hosts import Host, require_hosts, two_hosts
from tests.integration.launch.house import HANG_SECONDS, ROOT, clean_environment, wait_for
from tests.nursery import Child, Nursery, Trap
from tests.small_job import SmallWorld

SHORT = {"train__max_steps": 5, "train__eval_every_steps": 5, "train__checkpoint_every_steps": 2}
Hosts = tuple[Host, Host]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two machines."""
    require_hosts()
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def one_host(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same job by two processes of one machine."""
    run = Run.make(nursery, small_world, tmp_path_factory.mktemp("one-host"), world_size=2, **SHORT)
    run.finish()
    return run


@pytest.fixture
def run(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> Run:
    """The job, to be run on two machines that share its folder."""
    return Run.make(nursery, small_world, tmp_path / "first", **SHORT)


@pytest.fixture
def other(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> Run:
    """The second machine's view of it where they do not share a disk: another folder, in the configuration's one free key."""
    return Run.make(nursery, small_world, tmp_path / "second", **SHORT)


def start(hosts: Hosts, runs: tuple[Run, Run], *words: str, traps: dict[int, Trap] | None = None) -> list[Child]:
    """`python -m train` on both machines."""
    return runs[0].nursery.start_on_hosts("train", [[str(run.config), *words] for run in runs], hosts, traps=traps)


def finish(hosts: Hosts, runs: tuple[Run, Run]) -> list[Child]:
    """Start it and see it end well."""
    children = start(hosts, runs)
    assert [child.wait() for child in children] == [0, 0], "".join(child.output() for child in children)
    return children


def launch(host: Host, rank: int, main: Host, config: Path) -> "subprocess.Popen[str]":
    """./launch.sh on a machine; its output goes to a file."""
    arguments = f"--config_file configs/accelerate/multi-node.yaml --machine_rank {rank} --main_process_ip {main.address}"
    environment = clean_environment() | host.variables() | {"LAUNCH_ARGS": arguments, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["VIRTUAL_ENV"] = sys.prefix
    with (config.parent / f"output-{rank}.txt").open("w") as log:
        return subprocess.Popen(
            host.command("./launch.sh", str(config)), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
        )


def test_launched_stopped_on_one_machine_and_resumed(hosts: Hosts, run: Run, one_host: Run) -> None:
    """SIGTERM to launch.sh of the machine that writes nothing stops both, with a checkpoint; gone on with, it is the run of one machine."""
    both = [launch(host, rank, hosts[0], run.config) for rank, host in enumerate(hosts)]
    wait_for(lambda: steps_taken(run.folder) >= 1 or any(started.poll() is not None for started in both), "no step was taken")
    both[1].send_signal(signal.SIGTERM)
    said = [path.read_text() for path in sorted(run.config.parent.glob("output-*.txt"))]
    assert [started.wait(HANG_SECONDS) for started in both] == [143, 143], said
    stopped_after = steps_taken(run.folder)
    assert 1 <= stopped_after < 5
    assert f"resuming job at step {stopped_after}" in finish(hosts, (run, run))[0].output()
    assert_same(run, one_host)
    assert lines(run.folder)[0]["world_size"] == 2


@pytest.mark.parametrize(
    ("trap", "rank", "step"),
    [
        (Trap("train.siglip.loop:retrieve", 1, signal.SIGTERM), 1, 0),
        (Trap("train.siglip.mining:mine", 2, signal.SIGUSR1), 1, 4),
        (Trap("train.engine.checkpoint:save_file", 3, signal.SIGHUP), 0, None),
    ],
    ids=["in an evaluation", "in a mining", "while a checkpoint is written"],
)
def test_one_machine_that_is_told_stops_both(
    hosts: Hosts, run: Run, other: Run, one_host: Run, trap: Trap, rank: int, step: int | None
) -> None:
    """They agree on it, over disks that they do not share."""
    children = start(hosts, (run, other), traps={rank: trap})
    assert [child.wait() for child in children] == [143, 143], "".join(child.output() for child in children)
    assert "Traceback" not in children[0].output() + children[1].output()
    assert step is None or f"stopped: after step {step};" in children[0].output()
    finish(hosts, (run, other))
    assert_same(run, one_host)


def test_a_machine_that_hangs_ends_the_other_in_time(hosts: Hosts, run: Run, one_host: Run) -> None:
    """Its kernel still answers, so nothing but our time-out reports it; in a mining, where a flag is waited for."""
    children = start(hosts, (run, run), "train.timeout_seconds=6", traps={1: Trap("train.siglip.mining:mine", 2, signal.SIGSTOP)})
    assert children[0].wait() == 1 and "lost the other processes" in children[0].output()
    children[1].kill(signal.SIGKILL)
    children[1].wait()
    finish(hosts, (run, run))
    assert_same(run, one_host)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_that_dies_ends_the_other_with_a_message(hosts: Hosts, run: Run, other: Run, one_host: Run, victim: int) -> None:
    """Killed in a step. The disks are not shared: only the main process's machine has the run, and yet both go on from its checkpoint."""
    children = start(hosts, (run, other), traps={victim: Trap("train.model.grad_cache:image_features", 4)})
    assert children[victim].wait() == -signal.SIGKILL
    assert children[1 - victim].wait() == 1
    assert f"process {1 - victim} on machine" in children[1 - victim].output()
    assert "lost the other processes" in children[1 - victim].output()
    assert "resuming job at step 2" in finish(hosts, (run, other))[0].output()
    assert_same(run, one_host)
    assert not (other.folder / "checkpoints").exists() and not (other.folder / "export").exists()


@pytest.mark.slow
def test_a_cable_that_is_pulled_ends_both_in_time(hosts: Hosts, run: Run) -> None:
    """No packet reports that the other is gone; our time-out does. Gloo's own is half an hour."""
    slow = Trap("train.model.grad_cache:image_features", 3, signal.SIGSTOP)
    children = start(hosts, (run, run), "train.timeout_seconds=6", traps={1: slow})
    children[0].wait_until(lambda: steps_taken(run.folder) == 2)
    children[1].wait_until(lambda: psutil.Process(children[1].pid).status() == psutil.STATUS_STOPPED)  # it may be behind
    hosts[1].unplug()
    children[1].kill(signal.SIGCONT)
    assert [child.wait() for child in children] == [1, 1], children[0].output()
    assert all("lost the other processes" in child.output() for child in children)


def test_what_one_machine_lacks_or_has_otherwise_ends_both_with_the_reason(hosts: Hosts, run: Run, tmp_path: Path) -> None:
    """Only the second machine is wrong, and both name the fault: its exit code is 2 on both."""
    wrong = {
        "data.source=/nowhere/pairs.jsonl": "/nowhere/pairs.jsonl",
        "train.learning_rate=0.5": "train.learning_rate: 0.003 -> 0.5",
    }
    for change, words in wrong.items():
        arguments = [[str(run.config)], [str(run.config), change]]
        children = run.nursery.start_on_hosts("train", arguments, hosts)
        assert [child.wait() for child in children] == [2, 2], children[0].output() + children[1].output()
        assert words in children[0].output() and "machine" in children[0].output()

"""`accelerate launch` over two machines (network namespaces, gloo): the one-host run's losses, stops, losses of a machine, resumes."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.runs import Run, assert_same, lines, steps_taken
from tests.hosts import Host, require_hosts, two_hosts
from tests.integration.launch.house import HANG_SECONDS, ROOT, clean_environment, wait_for
from tests.nursery import Nursery
from tests.small_job import SmallWorld

SHORT = {"train__max_steps": 5, "train__eval_every_steps": 5, "train__checkpoint_every_steps": 2}


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
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


def launch(host: Host, rank: int, main: Host, config: Path, *words: str) -> "subprocess.Popen[str]":
    """./launch.sh on a machine, in a process group of its own; its output is in a file, read by `output`."""
    arguments = f"--config_file configs/accelerate/multi-node.yaml --machine_rank {rank} --main_process_ip {main.address}"
    environment = clean_environment() | host.variables() | {"LAUNCH_ARGS": arguments, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["VIRTUAL_ENV"] = sys.prefix
    with (config.parent / f"output-{rank}.txt").open("w") as log:
        return subprocess.Popen(
            host.command("./launch.sh", str(config), *words), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            text=True, start_new_session=True,
        )  # fmt: skip


def launch_both(hosts: tuple[Host, Host], configs: tuple[Path, Path], *words: str) -> list["subprocess.Popen[str]"]:
    return [launch(host, rank, hosts[0], config, *words) for rank, (host, config) in enumerate(zip(hosts, configs, strict=True))]


def codes(launches: list["subprocess.Popen[str]"]) -> list[int]:
    return [started.wait(HANG_SECONDS) for started in launches]


def output(config: Path) -> str:
    return "".join(path.read_text() for path in sorted(config.parent.glob("output-*.txt")))


def test_shared_disk_stopped_on_one_machine_and_resumed(
    hosts: tuple[Host, Host], nursery: Nursery, small_world: SmallWorld, tmp_path: Path, one_host: Run
) -> None:
    """SIGTERM to the launch of the machine that writes nothing stops both, with a checkpoint; then it ends as the run of one machine."""
    run = Run.make(nursery, small_world, tmp_path, **SHORT)
    both = launch_both(hosts, (run.config, run.config))
    wait_for(lambda: steps_taken(run.folder) >= 1 or any(started.poll() is not None for started in both), "no step was taken")
    both[1].send_signal(signal.SIGTERM)
    assert codes(both) == [143, 143], output(run.config)
    assert 1 <= steps_taken(run.folder) < 5
    assert codes(launch_both(hosts, (run.config, run.config))) == [0, 0], output(run.config)
    assert "resuming job" in output(run.config)
    assert_same(run, one_host)
    assert lines(run.folder)[0]["world_size"] == 2

"""The straight runs that disturbed ones are compared with."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.runs import Run
from tests.nursery import Nursery
from tests.small_job import SmallWorld


@pytest.fixture(scope="session")
def straight(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """World size -> an undisturbed run."""
    runs = {}
    for world_size in (1, 2):
        runs[world_size] = Run.make(nursery, small_world, tmp_path_factory.mktemp(f"straight-{world_size}"), world_size)
        runs[world_size].finish()
    return runs


@pytest.fixture
def run(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> Run:
    """The same job, to be disturbed; its workers decode in processes of their own, which changes no bit."""
    return Run.make(nursery, small_world, tmp_path, data__num_workers=1)


@pytest.fixture
def pair(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> Run:
    """The same on two processes."""
    return Run.make(nursery, small_world, tmp_path, world_size=2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)

"""launch.sh on a machine without the packages: .venv is made and filled once, and again only when it has to be.

The real script, the real venv and the real pip, with a project of one small dependency, built by a backend that notes each build.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.launch import probe_wheel
from tests.integration.launch.house import House, Launch

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "probe-house"
version = "1"
requires-python = ">=3.11"
dependencies = ["launch-probe>=1"]

[project.optional-dependencies]
test = ["launch-probe-checks"]
"""
BACKEND = """
import os
from probe_wheel import make_wheel

NEEDS = "Requires-Dist: launch-probe>=1\\nProvides-Extra: test\\nRequires-Dist: launch-probe-checks; extra == 'test'\\n"

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    with open(os.environ["BUILDS"], "a") as file:
        file.write("built\\n")
    return make_wheel(wheel_directory, "probe_house", "1", {}, NEEDS)
"""
# A fake ruff, mypy and pytest: prints its arguments and exits with the code of an environment variable.
CHECKER = """
import os, sys
print(__spec__.name, *sys.argv[1:], flush=True)
sys.exit(int(os.environ.get("EXIT_" + __spec__.name.upper(), "0")))
"""


class BareMachine:
    """A house whose dependency is installed nowhere, and a folder from which pip can have it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.wheels = house.folder / "wheels"
        self.wheels.mkdir()
        self.builds = house.folder / "builds"
        self.venv = house.folder / ".venv"
        shutil.copy(probe_wheel.__file__, house.folder)
        (house.folder / "backend.py").write_text(BACKEND)
        (house.folder / "pyproject.toml").write_text(PYPROJECT)
        self.pin("1.0")

    def pin(self, version: str) -> None:
        """Write constraints.txt."""
        (self.house.folder / "constraints.txt").write_text(f"launch-probe=={version}\n")

    def supply(self) -> None:
        """Put the dependencies where pip looks for them."""
        for version in ("1.0", "1.1"):
            probe_wheel.make_wheel(self.wheels, "launch_probe", version, {"launch_probe.py": ""})
        checks = {f"{name}.py": CHECKER for name in ("ruff", "mypy", "pytest")}
        probe_wheel.make_wheel(self.wheels, "launch_probe_checks", "1", checks)

    def start(self, *arguments: str, **variables: str) -> Launch:
        """Start launch.sh with no environment active, but a plain python3 on the path."""
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.wheels.as_uri(), "PIP_CONFIG_FILE": "/dev/null"}
        path = {"VIRTUAL_ENV": "", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        return self.house.start(*arguments, **pip | path | variables, BUILDS=str(self.builds))

    def num_builds(self) -> int:
        """How often the project was installed."""
        return len(self.builds.read_text().split()) if self.builds.exists() else 0

    def installed_version(self) -> str | None:
        """The version of the dependency in .venv."""
        found = list(self.venv.glob("lib/python3*/site-packages/launch_probe-*.dist-info"))
        return found[0].name.removesuffix(".dist-info").split("-")[1] if found else None


@pytest.fixture
def machine(house: House) -> BareMachine:
    """A machine without the packages."""
    return BareMachine(house)


def run(machine: BareMachine, *arguments: str, **variables: str) -> tuple[int, str, str]:
    return machine.start(*arguments, **variables).end()


def test_it_installs_once_and_again_when_what_it_rests_on_changes(machine: BareMachine) -> None:
    machine.supply()
    first = machine.start("configs/demo.yaml", "exit=3")
    code, _, stderr = first.end()
    assert code == 3, stderr
    assert first.note("start")["python"] == str(machine.venv / "bin" / "python")
    assert "lacks launch-probe>=1" in stderr and machine.num_builds() == 1

    code, _, stderr = run(machine)
    assert (code, machine.num_builds()) == (0, 1) and "installing" not in stderr
    assert run(machine, VIRTUAL_ENV=str(machine.venv))[0] == 0 and machine.num_builds() == 1  # ours, activated

    machine.pin("1.1")
    assert machine.installed_version() == "1.0"
    assert run(machine, VIRTUAL_ENV=str(machine.venv))[0] == 0
    assert (machine.num_builds(), machine.installed_version()) == (2, "1.1")

    code, stdout, _ = run(machine, "test")
    assert (code, machine.num_builds()) == (0, 3)
    cores = len(os.sched_getaffinity(0))
    shared_out = f" -n {min(cores, 8)} --dist loadscope --no-loadscope-reorder --max-worker-restart=0"
    whole_suite = "pytest -q" + (shared_out if cores > 1 else "")
    assert stdout.splitlines() == ["ruff check .", "mypy", whole_suite]
    assert run(machine)[0] == 0 and machine.num_builds() == 3  # what has the tests' packages has the others, too

    code, stdout, _ = run(machine, "test", "tests/unit", "-k", "two words", EXIT_RUFF="1")
    assert (code, stdout.splitlines()) == (0, ["pytest -q tests/unit -k two words"])
    for checker, expected in (("RUFF", 1), ("MYPY", 1), ("PYTEST", 5)):
        code, stdout, _ = run(machine, "test", **{f"EXIT_{checker}": str(expected)})
        assert (code, stdout.splitlines()[-1]) == (expected, whole_suite)
    assert machine.num_builds() == 3


def test_an_installation_that_did_not_finish_does_not_count_as_complete(machine: BareMachine) -> None:
    launch = machine.start()
    code, _, stderr = launch.end()
    assert code == 1 and "the installation failed" in stderr and "launch-probe" in stderr
    assert launch.note("start") is None
    machine.supply()
    shutil.rmtree(next(machine.venv.glob("lib/python3*/site-packages/pip")))  # as if killed while .venv was being made
    assert run(machine)[0] == 0 and machine.installed_version() == "1.0"
    num_builds = machine.num_builds()
    assert run(machine)[0] == 0 and machine.num_builds() == num_builds


def test_two_launches_at_once_install_once(machine: BareMachine) -> None:
    machine.supply()
    launches = [machine.start(), machine.start()]
    ends = [launch.end() for launch in launches]
    assert [end[0] for end in ends] == [0, 0], ends
    assert all(launch.note("start") for launch in launches)
    assert machine.num_builds() == 1


def test_an_old_python_is_refused_with_the_remedy(machine: BareMachine, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14", "python"):
        (old / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
        (old / name).chmod(0o755)
    code, _, stderr = run(machine, PATH=f"{old}:/usr/bin:/bin")
    assert code == 1 and "expected Python >= 3.11, found Python 3.9.2" in stderr
    assert not machine.venv.exists()

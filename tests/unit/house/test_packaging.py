"""The distribution installs dependencies and no module, and every dependency has a pin within its range."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [Requirement(text) for text in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])]
CUDA_ONLY = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")  # they follow torch's own pins, and are not on every machine


def pins() -> dict[str, str]:
    """Canonical name -> version, of every line of constraints.txt."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_wheel_holds_metadata_only(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("eval", "rerank", "train", "demo", "tests", "configs"):
        (source / package).mkdir()
        (source / package / "__init__.py").touch()
    (source / "stray.py").touch()
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        top_level = [archive.read(name).decode().split() for name in names if name.endswith("top_level.txt")]
    assert {name.split("/")[0] for name in names} == {f"siglip_tuner-{PROJECT['version']}.dist-info"}
    assert top_level in ([], [[]])


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_each_dependency_has_a_pin_within_its_range(requirement: Requirement) -> None:
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin), f"{requirement} against the pin {pin}"


def test_every_package_that_is_pulled_in_has_a_pin() -> None:
    waiting = [requirement for requirement in DIRECT if requirement.marker is None or requirement.marker.evaluate()]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or CUDA_ONLY.match(name):
            continue
        try:
            needs = distribution(requirement.name).requires or []
        except PackageNotFoundError:
            continue  # not needed on this machine
        seen.add(name)
        extras = [*requirement.extras, ""]
        parsed = [Requirement(text) for text in needs]
        waiting += [need for need in parsed if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)]
    assert len(seen) > len(DIRECT)
    assert seen - set(pins()) == set()


def test_no_pin_carries_a_local_suffix() -> None:
    assert [f"{name}=={version}" for name, version in pins().items() if "+" in version] == []

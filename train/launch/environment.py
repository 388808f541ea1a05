"""python -m train.launch.environment: what an issue report needs to know of this machine: versions, devices, cores, memory, disks.

Standard library until it asks torch for its devices, so that a broken package is told and not stumbled over.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser

_PACKAGES = (
    *("torch", "torchvision", "transformers", "accelerate", "peft", "datasets", "huggingface_hub", "safetensors", "tokenizers"),
    *("sentencepiece", "pillow", "numpy", "pyarrow", "pydantic", "sentence-transformers", "faiss-cpu"),
)
_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LAUNCH_ARGS")
_SHARED_MEMORY = "/dev/shm"
_ROOT = Path(__file__).parents[2]


def make_parser() -> CommandParser:
    """The options: none."""
    description = "Print what an issue report needs: versions of Python and packages, devices, cores, memory, disks."
    return CommandParser("train.launch.environment", description, "environment")


def software() -> str:
    """This project's version and, in a checkout, its commit: "siglip-tuner 0.1.0, commit 46ac089"."""
    with (_ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    asked = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return f"{project['name']} {project['version']}" + (f", commit {found}" if found else "")


def lines() -> Iterator[str]:
    """What is found, a line each; what cannot be found out says so."""
    yield software()
    yield f"python         {platform.python_version()} ({sys.executable})"
    yield f"platform       {platform.platform()}"
    for name in _PACKAGES:
        yield f"{name:<14} {_version(name)}"
    yield from _devices()
    yield f"cores          {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} of {os.cpu_count()}"
    yield f"memory         {_memory()}"
    for place in (_SHARED_MEMORY, os.getcwd()):
        yield f"{'/dev/shm' if place == _SHARED_MEMORY else 'disk':<14} {_room(place)}"
    for name in _VARIABLES:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> Iterator[str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield f"devices        torch cannot be imported ({error})"
        return
    yield f"threads        {torch.get_num_threads()} (torch)"
    if not torch.cuda.is_available():
        yield f"devices        cpu{', mps' if torch.backends.mps.is_available() else ''}"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        yield f"devices        cuda:{number} {found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _memory() -> str:
    try:
        pages, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
        return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB, {free * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB free"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _room(place: str) -> str:
    try:
        found = shutil.disk_usage(place)
        return f"{found.total / 2**30:.1f} GiB, {found.free / 2**30:.1f} GiB free ({place})"
    except OSError:
        return f"not there ({place})"


def run(asked: argparse.Namespace) -> None:
    """Print it."""
    for line in lines():
        print(line)


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    return run_command(lambda: run(asked), loads_models=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

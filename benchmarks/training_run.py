"""One training run, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_training(config: str, overrides: Mapping[str, Any]) -> Path:
    """`python -m train CONFIG key=value ...`; the run's folder.

    Args:
        overrides: `name` and `runs_folder` among them.

    Raises:
        SystemExit: the run failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "train", config, *(f"{key}={json.dumps(value)}" for key, value in overrides.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{config}, {overrides['name']} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    print(f"{overrides['name']}: done", flush=True)
    return Path(overrides["runs_folder"]) / overrides["name"]

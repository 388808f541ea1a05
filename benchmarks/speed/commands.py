"""Rows of whole commands on the demo."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(row: str, system: str, place: Path) -> dict[str, Any]:
    """Seconds of the command, from its start to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(dir=place) as folder:
        words = {
            "refresh": ["train.mining", "configs/demo.yaml", "name=refresh", f"runs_folder={folder}"],
            "eval": ["eval", "--model", "demo/models/siglip-base", "--data", "demo/data/scenes.parquet", "--column", "group=scene"]
            + ["--split", "test", "--output", f"{folder}/report"],
        }[row.removesuffix("-again")]
        if row.endswith("-again"):
            subprocess.run([sys.executable, "-m", *words], capture_output=True, check=False)
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-1000:]}")
    return {"seconds": seconds}

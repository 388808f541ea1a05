"""One training run of a study, in a process of its own, and what it leaves."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def run_training(config: str, overrides: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Path:
    """`python -m train CONFIG key=value ...`; the run's folder.

    Args:
        overrides: `name` and `runs_folder` among them.
        environment: variables next to those of this process.

    Raises:
        SystemExit: the run failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "train", config, *(f"{key}={json.dumps(value)}" for key, value in overrides.items())]
    done = subprocess.run(command, env=os.environ | dict(environment or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{config}, {overrides['name']} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    print(f"{overrides['name']}: done", flush=True)
    return Path(overrides["runs_folder"]) / overrides["name"]


def run_demo(
    name: str, seed: int, steps: int, eval_every: int, mining: Mapping[str, Any] | None, folder: Path
) -> tuple[pa.Table, list[Any]]:
    """The demo's job on one thread, without what comes after SigLIP: tuned's rows of queries.parquet, and the lines of metrics.jsonl.

    Args:
        steps: optimizer steps; a checkpoint at the end alone, next to the best.
        mining: the section of the configuration; None: nothing is mined.
        folder: of the runs.
    """
    overrides = {
        "name": name, "seed": seed, "runs_folder": str(folder), "mining": mining, "rerank": None, "watch": [], "choices": None,
        "train.max_steps": steps, "train.eval_every_steps": eval_every, "train.checkpoint_every_steps": steps,
    }  # fmt: skip
    run = run_training("configs/demo.yaml", overrides, {"OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    table = pq.read_table(run / "eval" / "test" / "queries.parquet")
    return table.filter(pc.equal(table["stage"], "tuned")), lines

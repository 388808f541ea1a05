"""What processes must agree on, for several machines may see different files: the job, and the checkpoint it goes on from."""

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from eval.processes import Processes
from train.checkpoint import Checkpoints, State
from train.config import JobConfig, RunConfig
from train.tracking import flatten

OWN_KEYS = ("runs_folder", "data.num_workers")  # each machine may have its own disk and its own number of cores


def check_agreement(
    config: JobConfig, base_sha256: str, data_sha256: str, matcher_sha256: str | None, members_sha256: str | None, processes: Processes
) -> None:
    """Every process must have been given the same job: on several machines files of one name may differ.

    Raises:
        UserError: on every process, naming what differs from the main process, and where.
    """
    pool = f" or {config.mining.pool}" if config.mining is not None and config.mining.pool is not None else ""
    parts = [
        (f"{config.data.source} (split {config.data.train_split}){pool}", data_sha256),
        (f"the weights of {config.model.base or 'model.scratch'}", base_sha256),
        (f"the cross-encoder of mining, {config.matcher_model}", matcher_sha256),
        (f"the checkpoints of mining.ensemble, {config.mining.ensemble if config.mining is not None else []}", members_sha256),
    ]
    check_same(config, parts, processes)


def check_same(config: RunConfig, parts: Sequence[tuple[str, str | None]], processes: Processes) -> None:
    """Every process must have the same configuration and the same parts.

    Args:
        parts: (what it is, its hash), in an order that is the same on every process.

    Raises:
        UserError: on every process, naming what differs from the main process, and where.
    """
    own = {"configuration": flatten(config.model_dump(mode="json"), "."), "parts": [sha256 for _, sha256 in parts]}
    main = processes.from_main(lambda: own)
    differing = [words for (words, sha256), expected in zip(parts, main["parts"], strict=True) if sha256 != expected]
    differing += [
        f"{key}: {main['configuration'].get(key)!r} -> {value!r}"
        for key, value in json.loads(json.dumps(own["configuration"])).items()
        if key not in OWN_KEYS and main["configuration"].get(key) != value
    ]
    lines = "\n  ".join(differing)
    found = f"process {processes.rank} on machine {socket.gethostname()} has another job than the main process:\n  {lines}"
    processes.raise_together(f"{found}\nGive every machine the same files and the same command" if differing else "")


def newest_of_main(checkpoints: Checkpoints, processes: Processes) -> tuple[State, list[str]] | None:
    """Checkpoints.newest() of the main process, on every process: another machine may see an older listing of the folder, or none.

    Raises:
        NoReadableCheckpoint: on every process; see Checkpoints.newest.
    """

    def newest() -> tuple[dict[str, Any], list[str]] | None:
        found = checkpoints.newest()
        return None if found is None else (asdict(found[0]), found[1])

    found = processes.from_main(newest)
    return None if found is None else (State.from_record(found[0]), found[1])

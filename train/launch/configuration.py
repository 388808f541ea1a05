"""Prints what of an accelerate configuration file decides how launch.sh starts the trainers, as one line of words.

    python -m train.launch.configuration FILE.yaml
    NUM_PROCESSES NUM_MACHINES USE_CPU PORT DISTRIBUTED_TYPE special|plain

PORT is "none" if the file names none. "plain" means that the file asks for nothing that a bare `python -m train` would not do.
"""

import sys
from typing import Any

from train.config.yaml_text import parse_yaml

BARE_KEYS = {
    "compute_environment",
    "distributed_type",
    "num_processes",
    "num_machines",
    "machine_rank",
    "use_cpu",
    "main_training_function",
}
UNSET: tuple[Any, ...] = (None, False, {}, "no", "NO", "all", "static")


def facts(values: dict[str, Any]) -> list[str]:
    """The words for a file's values.

    Raises ValueError or TypeError where a count is not a number.
    """
    for key in ("num_processes", "num_machines", "main_process_port"):
        if isinstance(values.get(key), bool):
            raise ValueError(f"{key}: expected a number, found {values[key]} (YAML reads on and yes as true, off and no as false)")
    special = any(key not in BARE_KEYS and value not in UNSET for key, value in values.items())
    return [
        str(int(values.get("num_processes", 1))),
        str(int(values.get("num_machines", 1))),
        "true" if values.get("use_cpu") else "false",
        str(values.get("main_process_port", "none")),
        str(values.get("distributed_type", "NO")),
        "special" if special else "plain",
    ]


if __name__ == "__main__":
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            loaded = parse_yaml(file.read())
        print(*facts(dict(loaded)))
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"launch.sh: LAUNCH_ARGS: {sys.argv[1]} is not an accelerate configuration that can be read: {error}")

"""One measurement of one row in this process: python -m benchmarks.speed.measure ROW SYSTEM PLACE [--prepare]

Prints one JSON object. It is run from the root of the tree that is measured, which may be an earlier commit with this folder in it
(benchmarks/__main__.py): so what measures uses only what both trees have.
"""

import argparse
import json
from importlib import import_module
from pathlib import Path

from benchmarks.speed.rows import ROWS


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("row")
    parser.add_argument("system")
    parser.add_argument("place", type=Path)
    parser.add_argument("--prepare", action="store_true")
    asked = parser.parse_args()
    if asked.row == "machine":
        from benchmarks.speed.machine import rates

        print(json.dumps(rates(asked.place)))
        return
    row = next(row for row in ROWS if row.name == asked.row)
    module = import_module(f"benchmarks.speed.{row.module}")
    if asked.prepare:
        if hasattr(module, "prepare"):
            module.prepare(row.name, asked.place)
        return
    print(json.dumps(module.measure(row.name, asked.system, asked.place)), flush=True)


if __name__ == "__main__":
    main()

"""The README's table, from the committed report of the demo.

    ./launch.sh && python -m benchmarks.demo_table --copy runs/demo/eval/test     # keep a run's report under results/demo
    python -m benchmarks.demo_table --write                                       # put its table into README.md
    python -m benchmarks.demo_table                                               # print it

Every number is computed from results/demo/queries.parquet, the row-a-query file, and nothing else; a test compares README.md with it.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "demo"
START = "<!-- demo table: python -m benchmarks.demo_table --write -->"
END = "<!-- end of demo table -->"
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


def demo_table(folder: Path = RESULTS) -> str:
    """The table as Markdown: R@1, R@5, R@10 and median rank of each stage, and the paired differences of mean R@1."""
    queries = pq.read_table(folder / "queries.parquet", columns=["stage", "direction", "rank"])
    lines = ["| stage | direction | R@1 | R@5 | R@10 | median rank |", "|---|---|---|---|---|---|"]
    for stage in dict.fromkeys(queries["stage"].to_pylist()):
        for direction, words in DIRECTIONS.items():
            rows = queries.filter(pc.and_(pc.equal(queries["stage"], stage), pc.equal(queries["direction"], direction)))
            ranks = rows["rank"].to_numpy()
            recalls = " | ".join(f"{100 * np.mean(ranks <= k):.1f}" for k in (1, 5, 10))
            lines.append(f"| {stage} | {words} | {recalls} | {np.median(ranks):g} |")
    record: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    lines += ["", "| mean R@1 of both directions | difference, points | paired 95% interval | verdict |", "|---|---|---|---|"]
    for row in record["comparisons"]:
        if row["direction"] == "both" and row["metric"] == "R@1":
            low, high = (100 * bound for bound in row["ci95"])
            name = f"{row['stage']} against {row['against']}"
            lines.append(f"| {name} | {100 * row['delta']:+.1f} | {low:+.1f} to {high:+.1f} | {row['verdict']} |")
    return "\n".join(lines)


def readme_with(table: str, readme: str) -> str:
    """README.md with the table between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, found_start, rest = readme.partition(START)
    _, found_end, after = rest.partition(END)
    if not found_start or not found_end:
        raise ValueError(f"README.md lacks the lines {START!r} and {END!r}")
    return f"{before}{START}\n{table}\n{END}{after}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copy", type=Path, help="folder of a report to keep under results/demo")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    asked = parser.parse_args()
    if asked.copy is not None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "queries.parquet"):
            shutil.copyfile(asked.copy / name, RESULTS / name)
    table = demo_table()
    if asked.write:
        readme = ROOT / "README.md"
        readme.write_text(readme_with(table, readme.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()

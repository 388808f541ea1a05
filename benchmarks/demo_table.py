"""The README's table, from the committed report of the demo.

    ./launch.sh && python -m benchmarks.demo_table --copy runs/demo/eval/test     # keep a run's report under results/demo
    python -m benchmarks.demo_table --write                                       # put its table into README.md
    python -m benchmarks.demo_table                                               # print it

Recalls are computed from results/demo/queries.parquet, the row-a-query file; differences and what was forgotten are those of
report.json next to it. A test compares README.md with it.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "demo"
START = "<!-- demo table: python -m benchmarks.demo_table --write -->"
END = "<!-- end of demo table -->"
DIRECTIONS = ("image_to_text", "text_to_image")


def demo_table(folder: Path = RESULTS) -> str:
    """The table as Markdown: R@1 of each stage and its paired difference from its own first stage, and what tuning forgot.

    Recalls are computed from the rows of the queries; differences, intervals and verdicts, and the retention set, are the report's.
    """
    record: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    queries = pq.read_table(folder / "queries.parquet", columns=["stage", "direction", "rank"])
    lines = ["| R@1 in percent | image to text | text to image | mean | difference, 95% interval | verdict |", "|---|---|---|---|---|---|"]
    for stage in dict.fromkeys(queries["stage"].to_pylist()):
        recalls = [_recall_at_1(queries, stage, direction) for direction in DIRECTIONS]
        against = "tuned" if stage.startswith("tuned+") else "base"
        lines.append(_row(stage, recalls, record["comparisons"], stage, against))
    for kept in record["watch"]:
        for stage, figures in kept["stages"].items():
            recalls = [figures[direction]["R@1"] for direction in DIRECTIONS]
            lines.append(_row(f"{stage}, on scenes in the base's old look", recalls, kept["comparisons"], stage, "base"))
    return "\n".join(lines)


def _recall_at_1(queries: pa.Table, stage: str, direction: str) -> float:
    """Share of the queries of a stage and direction whose best relevant item is first."""
    rows = queries.filter(pc.and_(pc.equal(queries["stage"], stage), pc.equal(queries["direction"], direction)))
    return float(np.mean(rows["rank"].to_numpy() <= 1))


def _row(name: str, recalls: list[float], comparisons: list[dict[str, Any]], stage: str, against: str) -> str:
    """A line: R@1 of both directions and their mean, and the paired difference of the mean where it was compared."""
    cells = [name, *(f"{100 * recall:.1f}" for recall in (*recalls, sum(recalls) / len(recalls)))]
    wanted = {"stage": stage, "against": against, "direction": "both", "metric": "R@1"}
    for row in comparisons:
        if wanted.items() <= row.items():
            low, high = (100 * bound for bound in row["ci95"])
            cells += [f"{100 * row['delta']:+.1f} from {against} ({low:+.1f} to {high:+.1f})", row["verdict"]]
    return "| " + " | ".join(cells + [""] * (6 - len(cells))) + " |"


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

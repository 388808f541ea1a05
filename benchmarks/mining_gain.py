"""Does mining help the demo's job? configs/demo.yaml with its mining against the same without, over seeds.

    python -m benchmarks.mining_gain --seeds 3 --output results/mining-gain            # six runs of some minutes, one thread each

Every run is the whole job without the retention set, choices and reranking; its checkpoint is chosen on val and measured on
test. For each seed mined is compared with not mined, and all seeds together, images resampled jointly: those intervals cover the test
images. The interval over seeds, from the seeds' own differences, covers that of training runs (Student's t). A gain counts where both lie
above 0. Writes OUTPUT.md, and OUTPUT/queries.parquet and runs.json behind it. Runs that are finished in --runs are used as they are.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from benchmarks.distillation import KEPT, chosen_step, comparison_rows, differences, of_system, over_seeds
from benchmarks.mining_forms import mean_recall
from benchmarks.training_run import run_demo

CONFIG = Path("configs/demo.yaml")
SYSTEMS = ("none", "mined")


def mining_section(steps: int) -> dict[str, Any]:
    """What configs/demo.yaml says of mining, its times scaled to a job of so many steps: after each quarter."""
    section: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["mining"]
    quarter = max(1, steps // 4)
    return section | {"start_step": quarter, "mine_every_steps": quarter}


def rows_of(table: pa.Table, system: str, seed: int) -> pa.Table:
    """The rows of one run as they are kept: with the system and the seed."""
    rows = table.select(KEPT)
    for name, values in (("arm", pa.array([system] * len(rows))), ("seed", pa.array([seed] * len(rows), pa.int64()))):
        rows = rows.append_column(name, values)
    return rows


def run_record(system: str, seed: int, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What one run took, from its metrics.jsonl."""
    steps, mining = ([line["seconds"] for line in lines if line["event"] == event] for event in ("step", "mining"))
    return {
        "arm": system, "seed": seed, "chosen_step": chosen_step(list(lines)), "step_seconds": float(sum(steps)),
        "mining_seconds": float(sum(mining)), "num_minings": len(mining),
    }  # fmt: skip


def study(num_seeds: int, steps: int, folder: Path) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Run everything: rows of all systems and seeds, and a record a run."""
    parts, records = [], []
    for seed in range(num_seeds):
        for system in SYSTEMS:
            table, lines = run_demo(
                f"{system}-{seed}", seed, steps, max(1, steps // 4), mining_section(steps) if system == "mined" else None, folder
            )
            parts.append(rows_of(table, system, seed))
            records.append(run_record(system, seed, lines))
    return pa.concat_tables(parts), records


def headline(queries: pa.Table) -> dict[str, Any]:
    """Mean R@1 of both directions, mined less not: delta, ci95 over images, verdict, by_seed and ci95_seeds (None of one seed)."""
    row = differences({system: of_system(queries, system) for system in SYSTEMS}, "mined", "none")["both"]
    seeds = [queries.filter(pc.equal(queries["seed"], seed)) for seed in sorted(set(queries["seed"].to_pylist()))]
    each = [differences({system: of_system(one, system) for system in SYSTEMS}, "mined", "none")["both"] for one in seeds]
    deltas = [one["delta"] for one in each]
    return row | {"by_seed": deltas, "by_seed_ci95": [one["ci95"] for one in each], "ci95_seeds": over_seeds(deltas)}


def share_of_time(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of steps and mining of the mined runs over those of the others."""
    seconds = {system: sum(one["step_seconds"] + one["mining_seconds"] for one in records if one["arm"] == system) for system in SYSTEMS}
    return seconds["mined"] / seconds["none"]


def page(queries: pa.Table, study_record: Mapping[str, Any]) -> str:
    """The page, from what is kept."""
    records, section = study_record["runs"], study_record["mining"]
    lines = ["| system | mean R@1 | chosen steps | s of steps, a run | s of mining, a run |", "|---|---|---|---|---|"]
    for system in SYSTEMS:
        runs = [one for one in records if one["arm"] == system]
        recall, chosen = mean_recall({system: of_system(queries, system)}, system), ", ".join(str(one["chosen_step"]) for one in runs)
        seconds = [f"{np.mean([one[key] for one in runs]):.0f}" for key in ("step_seconds", "mining_seconds")]
        lines.append(f"| {system} | {recall:.1f} | {chosen} | {seconds[0]} | {seconds[1]} |")
    each = [
        f"| {seed} | {100 * delta:+.1f} | {100 * low:+.1f} to {100 * high:+.1f} |"
        for seed, (delta, (low, high)) in enumerate(zip(headline(queries)["by_seed"], headline(queries)["by_seed_ci95"], strict=True))
    ]
    return "\n".join(
        [
            "# Does mining help the demo's job?",
            "",
            f"`{study_record['command']}`: configs/demo.yaml, {study_record['steps']} steps, with its mining",
            f"({', '.join(f'{key} {json.dumps(value)}' for key, value in section.items())})",
            "and without; checkpoint chosen on val, measured on test. R@1: mean of both directions, all seeds, in percent; differences in",
            "points. Over test images: paired, all seeds together; over seeds: of the mean over runs, by Student's t. A gain counts",
            "where both lie above 0. Seconds: read ratios.",
            "",
            *lines,
            "",
            "| comparison | direction | difference | 95% over test images | verdict | 95% over seeds | by seed |",
            "|---|---|---|---|---|---|---|",
            *comparison_rows("mined", "none", queries),
            "",
            "| seed | mined less not, both directions | 95% over test images |",
            "|---|---|---|",
            *each,
            "",
        ]
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--runs", type=Path, default=Path("runs/mining-gain"), help="folder of the runs")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    queries, records = study(asked.seeds, asked.steps, asked.runs)
    command = "python -m benchmarks.mining_gain " + " ".join(sys.argv[1:])
    record = {"command": command, "steps": asked.steps, "mining": mining_section(asked.steps), "runs": records}
    asked.output.mkdir(parents=True, exist_ok=True)
    pq.write_table(queries, asked.output / "queries.parquet")
    (asked.output / "runs.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = page(queries, record)
    asked.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

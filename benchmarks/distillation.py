"""Does SigLIP learn from the cross-encoder? Mined captions with hard labels against the same captions with its teacher logits.

    python -m benchmarks.distillation --steps 400 --seeds 3 --output results/distillation.md                      # 12 runs, one thread each
    python -m benchmarks.distillation --system 'soft={"distil": {"form": "labels", "temperature": 4}}' --output FILE

Every run is the demo's job (configs/demo.yaml: base weights, rates, batch) cut to --steps; its checkpoint is chosen on val and measured on
test. `hard` mines by --mining and labels every mined caption -1; another system is what it changes of that section, mining.distil as a rule
and nothing else: then it learns from captions mined by the same rules. A comparison takes the queries of all seeds together, images
resampled jointly (eval/metrics/comparison.py), so its interval covers the sampling of test images and not that of training runs; for those
there is the interval over seeds, from the seeds' own differences (Student's t). A gain counts where both lie above 0. Next to FILE.md,
FILE/queries.parquet keeps every query's rank in every system and seed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.mining_forms import mean_recall, seconds_per_step, systems
from benchmarks.training_run import run_demo
from eval.metrics.comparison import compare
from eval.metrics.significance import resample_weights
from eval.search.ranking import Direction

BASELINES: dict[str, dict[str, Any]] = {"none": {}, "hard": {}}
MODEL = "demo/models/blip-itm"
DISTILLED: dict[str, dict[str, Any]] = {
    "labels": {"distil": {"form": "labels"}},
    "lists": {"distil": {"form": "lists", "temperature": 3.0}},
}
MINING: dict[str, Any] = {"negatives_per_image": 6, "weight": 0.25, "margin": None, "pool_top_k": 64, "selection": "random"}
DIRECTIONS: tuple[Direction | str, ...] = ("image_to_text", "text_to_image", "both")
KEPT = ["stage", "direction", "query_id", "image_id", "rank", "ap_at_r", "r_precision"]
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # two-sided 95% quantiles, 1 to 9 degrees of freedom


def run(system: str, mining: dict[str, Any], seed: int, steps: int, folder: Path) -> tuple[pa.Table, list[Any]]:
    """One run of a system: tuned's rows of queries.parquet and the lines of metrics.jsonl."""
    quarter = max(1, steps // 4)
    asked = None if system == "none" else {"start_step": quarter, "mine_every_steps": quarter} | mining
    return run_demo(f"{system}-{seed}", seed, steps, quarter, asked, folder)


def differences(tables: dict[str, pa.Table], system: str, against: str) -> dict[str, dict[str, Any]]:
    """R@1 of a system less another's, by direction, "both" their mean: the comparison's rows (eval/metrics/comparison.py)."""
    measured, num_images = systems({name: tables[name] for name in (system, against)})
    rows = compare(measured, [(system, against)], resample_weights(num_images))
    return {row["direction"]: row for row in rows if row["metric"] == "R@1"}


def over_seeds(deltas: list[float]) -> tuple[float, float] | None:
    """95% interval of the mean difference over training seeds, by Student's t; None of one seed, or of more than ten."""
    if not 2 <= len(deltas) <= len(_T_975) + 1:
        return None
    half = _T_975[len(deltas) - 2] * float(np.std(deltas, ddof=1)) / len(deltas) ** 0.5
    return float(np.mean(deltas)) - half, float(np.mean(deltas)) + half


def _interval(ends: tuple[float, float] | list[float] | None) -> str:
    return "" if ends is None else f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"


def system_row(system: str, pooled: pa.Table, lines: list[list[Any]]) -> str:
    """What a system reached, and cost."""
    mining = [line for run_lines in lines for line in run_lines if line["event"] == "mining"]
    mined = f"{np.mean([line['num_mined'] for line in mining]):,.0f}" if mining else ""
    judged = f"{np.mean([line['num_judged'] for line in mining]):,.0f}" if mining else ""
    seconds = f"{np.mean([line['seconds'] for line in mining]):.0f}" if mining else ""
    step = np.median([seconds_per_step(run_lines) for run_lines in lines])
    chosen = ", ".join(str(chosen_step(run_lines)) for run_lines in lines)
    return f"| {system} | {mean_recall({system: pooled}, system):.1f} | {chosen} | {mined} | {judged} | {seconds} | {step:.2f} |"


def chosen_step(lines: list[Any]) -> int:
    """The step whose checkpoint was best on val, and measured on test; 0: the base itself, which no later one was better than."""
    return max(line["step"] for line in lines if line["event"] == "eval" and line["best"])


def comparison_rows(system: str, against: str, queries: pa.Table) -> list[str]:
    """One line a direction.

    Args:
        queries: of all systems and seeds (`study`).
    """
    seeds = sorted(set(queries["seed"].to_pylist()))
    by_seed = [{name: of_system(queries.filter(pc.equal(queries["seed"], seed)), name) for name in (system, against)} for seed in seeds]
    whole = differences({name: of_system(queries, name) for name in (system, against)}, system, against)
    each = [differences(tables, system, against) for tables in by_seed]
    rows = []
    for direction in DIRECTIONS:
        deltas, row = [one[direction]["delta"] for one in each], whole[direction]
        rows.append(
            f"| {system} against {against} | {direction.replace('_', ' ')} | {100 * row['delta']:+.1f} | {_interval(row['ci95'])} "
            f"| {row['verdict']} | {_interval(over_seeds(deltas))} | {', '.join(f'{100 * delta:+.1f}' for delta in deltas)} |"
        )
    return rows


def of_system(queries: pa.Table, system: str) -> pa.Table:
    """The rows of one system, as eval/metrics/stage_metrics.py reads them: every system's stage is "tuned"."""
    return queries.filter(pc.equal(queries["arm"], system))


def comparisons(queries: pa.Table) -> list[str]:
    """The lines of the second table: hard labels against no mining, then each distilled system against both."""
    distilled = [system for system in dict.fromkeys(queries["arm"].to_pylist()) if system not in BASELINES]
    pairs = [("hard", "none"), *((system, against) for system in distilled for against in ("hard", "none"))]
    return [row for system, against in pairs for row in comparison_rows(system, against, queries)]


def study(every: dict[str, dict[str, Any]], num_seeds: int, steps: int, folder: Path) -> tuple[pa.Table, list[str]]:
    """Run everything; per-query rows of all systems and seeds, and the lines of both tables.

    Args:
        every: the mining section of each system.
    """
    found = {(system, seed): run(system, every[system], seed, steps, folder) for seed in range(num_seeds) for system in every}
    parts = []
    for (system, seed), (table, _) in found.items():
        kept = table.select(KEPT)
        for name, value in (("arm", pa.array([system] * len(kept))), ("seed", pa.array([seed] * len(kept), pa.int64()))):
            kept = kept.append_column(name, value)
        parts.append(kept)
    queries = pa.concat_tables(parts)
    return queries, [
        "| system | R@1 | chosen steps | negatives mined | pairs scored | s a mining | s a step |",
        "|---|---|---|---|---|---|---|",
        *(system_row(system, of_system(queries, system), [found[system, seed][1] for seed in range(num_seeds)]) for system in every),
        "",
        "| comparison | direction | difference | 95% over test images | verdict | 95% over seeds | by seed |",
        "|---|---|---|---|---|---|---|",
        *comparisons(queries),
    ]


def _named_system(text: str) -> tuple[str, dict[str, Any]]:
    """NAME={...} of --system."""
    name, _, section = text.partition("=")
    if not name or name in BASELINES or not isinstance(loaded := json.loads(section or "null"), dict):
        raise ValueError(text)
    return name, loaded


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--system",
        action="append",
        type=_named_system,
        help='what a system changes of --mining, NAME={"distil": {...}}; default: labels and lists',
    )
    parser.add_argument(
        "--mining", type=json.loads, default={}, help=f"changes to the rules of every system that mines, {json.dumps(MINING)}"
    )
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    distilled = dict(asked.system or DISTILLED.items())
    mining = MINING | asked.mining
    every = {name: mining | section for name, section in (BASELINES | distilled).items()}
    for section in every.values():
        if section.get("distil"):
            section["distil"] = {"model": MODEL} | section["distil"]
    with tempfile.TemporaryDirectory(prefix="distillation-") as folder:
        queries, rows = study(every, asked.seeds, asked.steps, Path(folder))
    words = " ".join(word if word.isprintable() and not set(word) & set('{}" ') else f"'{word}'" for word in sys.argv[1:])
    text = [
        "# Does SigLIP learn from the cross-encoder?",
        "",
        f"`python -m benchmarks.distillation {words}`: the demo's job, {asked.steps} steps of 64 images, {asked.seeds} seed(s);",
        "mined after each quarter but the last; checkpoint chosen on val, measured on test; one thread each.",
        f"hard: every mined caption -1, {', '.join(f'{key} {json.dumps(value)}' for key, value in mining.items())}. What the others change",
        f"of that: {'; '.join(f'{name}: `{json.dumps(section)}`' for name, section in distilled.items())}.",
        'R@1: mean of both directions, all seeds, in percent. Differences in points. "Over test images": paired, all seeds together; its',
        'verdicts are corrected for all metrics and directions of one comparison, not for the comparisons. "Over seeds": of the mean over',
        "training runs, from the seeds' own differences in the last column. A gain counts where both lie above 0.",
        "",
        *rows,
    ]
    asked.output.with_suffix("").mkdir(parents=True, exist_ok=True)
    pq.write_table(queries, asked.output.with_suffix("") / "queries.parquet")
    asked.output.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

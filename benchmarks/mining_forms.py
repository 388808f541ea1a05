"""Columns, images or neighbours: what does each form of mining do for retrieval on the demo's scenes, against none?

    python -m benchmarks.mining_forms --steps 150 --seeds 3 --output results/mining-forms.md         # 12 short runs, one thread each

Every run is the demo's job (configs/demo.yaml: base weights, rates, batch) cut to --steps, its checkpoint chosen on val and measured on
test. A row compares one form with no mining: queries of all seeds together, images resampled jointly (eval/metrics/comparison.py), so the
interval covers the draw of test images, and the seeds' own differences next to it show the draw of training runs.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.training_run import run_demo
from eval.metrics.comparison import compare
from eval.metrics.significance import resample_weights
from eval.metrics.stage_metrics import StageMetrics, mean_recall_at_1
from eval.search.ranking import DIRECTIONS, Direction

FORMS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "columns": {"form": "columns", "negatives_per_image": 1, "weight": 0.25},
    "images": {"form": "images", "negatives_per_image": 1},
    "neighbours": {"form": "neighbours", "negatives_per_image": 4},
}
COMMON = {"margin": -3.0, "pool_top_k": 64}
Measured = dict[tuple[str, Direction], StageMetrics]


def run(form: str, seed: int, steps: int, folder: Path) -> tuple[pa.Table, list[dict[str, Any]]]:
    """One run of a form: tuned's rows of queries.parquet and the lines of metrics.jsonl."""
    keys = FORMS[form]
    third = max(1, steps // 3)
    mining = None if keys is None else COMMON | {"start_step": third, "mine_every_steps": third} | keys
    return run_demo(f"{form}-{seed}", seed, steps, third, mining, folder)


def systems(tables: dict[str, pa.Table]) -> tuple[Measured, int]:
    """Each form's system in both directions, and the number of images; a table may hold the same queries once per seed."""
    images: dict[str, int] = {}
    for name in next(iter(tables.values()))["image_id"].to_pylist():
        images.setdefault(name, len(images))
    return {
        (form, direction): StageMetrics.of(table, "tuned", direction, images) for form, table in tables.items() for direction in DIRECTIONS
    }, len(images)


def difference(tables: dict[str, pa.Table], form: str) -> dict[str, Any]:
    """The headline row of a form against none: mean R@1 of both directions."""
    measured, num_images = systems({name: tables[name] for name in ("none", form)})
    rows = compare(measured, [(form, "none")], resample_weights(num_images))
    return next(row for row in rows if (row["direction"], row["metric"]) == ("both", "R@1"))


def mean_recall(tables: dict[str, pa.Table], form: str) -> float:
    """Mean R@1 of both directions, over all seeds, in percent."""
    measured, _ = systems({form: tables[form]})
    return 100 * mean_recall_at_1({direction: measured[form, direction].values() for direction in DIRECTIONS})


def composition(lines: list[dict[str, Any]]) -> str:
    """What the steps' lines say of their batches, in a few words."""
    steps = [line for line in lines if line["event"] == "step"]
    for key, words in (("num_hard_images", "hard images a batch"), ("neighbours_per_image", "neighbours met by an image")):
        values = [line[key] for line in steps if line.get(key)]
        if values:
            return f"{np.mean(values):.1f} {words}"
    mined = [line["num_mined"] for line in steps if line["num_mined"]]
    return f"{np.mean(mined):.1f} mined captions a batch" if mined else ""


def seconds_per_step(lines: list[dict[str, Any]]) -> float:
    """Median of a run's steps behind the first third, where its mining is in force."""
    seconds = [line["seconds"] for line in lines if line["event"] == "step"]
    return float(np.median(seconds[len(seconds) // 3 :]))


def study(forms: list[str], num_seeds: int, steps: int, folder: Path) -> list[str]:
    """Run everything; the rows of the table."""
    found = {(form, seed): run(form, seed, steps, folder) for seed in range(num_seeds) for form in forms}
    pooled = {form: pa.concat_tables([found[form, seed][0] for seed in range(num_seeds)]) for form in forms}
    rows = []
    for form in forms:
        all_lines = [found[form, seed][1] for seed in range(num_seeds)]
        shown = [
            composition(sum(all_lines, [])),
            f"{np.median([seconds_per_step(lines) for lines in all_lines]):.2f}",
            f"{mean_recall(pooled, form):.1f}",
        ]
        if form == "none":
            shown += ["", "", "", ""]
        else:
            row = difference(pooled, form)
            each = [100 * difference({name: found[name, seed][0] for name in ("none", form)}, form)["delta"] for seed in range(num_seeds)]
            low, high = (100 * bound for bound in row["ci95"])
            shown += [
                f"{100 * row['delta']:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                row["verdict"],
                ", ".join(f"{delta:+.1f}" for delta in each),
            ]
        rows.append(f"| {form} | " + " | ".join(shown) + " |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--form", action="append", choices=[form for form in FORMS if form != "none"], help="compare these (default: all)")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    forms = asked.form or [form for form in FORMS if form != "none"]
    with tempfile.TemporaryDirectory(prefix="mining-forms-") as folder:
        rows = study(["none", *forms], asked.seeds, asked.steps, Path(folder))
    settings = "; ".join(
        f"{form}: " + ", ".join(f"{k} {v}" for k, v in keys.items() if k != "form")
        for form, keys in FORMS.items()
        if keys and form in forms
    )
    text = [
        "# Columns, images or neighbours?",
        "",
        f"`python -m benchmarks.mining_forms {' '.join(sys.argv[1:])}`: the demo's job, {asked.steps} steps of 64 images, mined at a",
        f"third and at two thirds; checkpoint chosen on val, measured on test; one thread each. {settings};",
        f"all: margin {COMMON['margin']}, pool_top_k {COMMON['pool_top_k']}.",
        "R@1: mean of both directions, in percent. Difference: against none, in points, paired 95% interval over test images, all",
        "seeds together; the last column has each seed by itself. Verdicts are corrected for all metrics of a form, not for the forms.",
        "",
        "| form | composition | s a step | R@1 | difference | 95% interval | verdict | by seed |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    asked.output.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

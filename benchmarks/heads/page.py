"""Comparisons of finished runs, and the page of results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.heads.systems import CONTROLS, PLAIN
from eval.atomic import replace_files
from eval.metrics.significance import interval, resample_weights
from train.study.statistics import OverSeeds, verdicts

Runs = list[dict[str, Any]]
EQUAL = 1.05
"""Costs up to this ratio count as equal."""


def write_page(output: Path, results: Sequence[dict[str, Any]] | None) -> None:
    """Write runs.parquet from results, or read it, and the page beside the folder."""
    stored = output / "runs.parquet"
    if results is not None:
        rows = [each | {"by_image": np.round(each["by_image"], 3).tolist()} for each in results]
        table = pa.Table.from_pylist(rows)
        index = table.schema.get_field_index("by_image")
        table = table.set_column(index, "by_image", table["by_image"].cast(pa.list_(pa.float32())))
        replace_files({stored: lambda target: pq.write_table(table, target, compression="zstd")})
    runs = pq.read_table(stored).to_pylist()
    protocol = json.loads((output / "protocol.json").read_text(encoding="utf-8"))
    screening = json.loads((output / "screening.json").read_text(encoding="utf-8"))
    compared = {bed: compare([run for run in runs if run["bed"] == bed], screening[bed]["mean_R@1"]) for bed in protocol["beds"]}
    replace_files({
        output / "comparisons.json": json.dumps(compared, indent=1) + "\n",
        output.with_suffix(".md"): "\n".join(page(output.name, protocol, screening, runs, compared)) + "\n",
    })  # fmt: skip


def of_system(runs: Runs, name: str) -> Runs:
    """Its runs, by seed."""
    return sorted((run for run in runs if run["system"] == name), key=lambda run: run["seed"])


def mean_recalls(runs: Runs) -> np.ndarray:
    """Mean R@1 of both directions of each run."""
    return np.array([(run["image_to_text"] + run["text_to_image"]) / 2 for run in runs])


def compare(runs: Runs, on_val: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every system against plain, and against the plain training that is best on val of those that cost no more; verdicts are corrected
    for all comparisons of a bed.

    Args:
        on_val: mean R@1 of each system in the screening.
    """
    names = list(dict.fromkeys(run["system"] for run in runs))
    costs = {name: float(np.mean([run["cost"] for run in of_system(runs, name)])) for name in names}
    weights_SI = resample_weights(len(runs[0]["by_image"]))
    found, seeds, images = [], [], []
    for name in names:
        if name == PLAIN:
            continue
        against = [PLAIN]
        if name not in CONTROLS:
            affordable = [PLAIN, *(control for control in CONTROLS if control in names and costs[control] <= costs[name] * EQUAL)]
            against += [best] if (best := max(affordable, key=lambda control: on_val[control])) != PLAIN else []
        for other in against:
            pair = [of_system(runs, each) for each in (name, other)]
            difference_N = mean_recalls(pair[0]) - mean_recalls(pair[1])
            by_image_I = np.mean([one["by_image"] for one in pair[0]], 0) - np.mean([one["by_image"] for one in pair[1]], 0)
            drawn_S = weights_SI @ by_image_I / weights_SI.sum(1)
            over_seeds, over_images = OverSeeds.of(difference_N.tolist()), tuple(interval(drawn_S[:, None])[:, 0].tolist())
            near = np.array([one["near_miss"] for one in pair[0]]) - np.array([one["near_miss"] for one in pair[1]])
            near_seeds = OverSeeds.of(near.tolist())
            seeds.append(over_seeds)
            images.append(over_images)
            found.append({
                "system": name, "against": other, "difference": over_seeds.mean, "ci95_seeds": over_seeds.ci95, "ci95_images": over_images,
                "near_miss_difference": near_seeds.mean, "near_miss_ci95_seeds": near_seeds.ci95, "times_cost": costs[name] / costs[PLAIN],
            })  # fmt: skip
    for row, verdict in zip(found, verdicts(seeds, images), strict=True):
        row["verdict"] = verdict
    return found


def page(folder: str, protocol: dict[str, Any], screening: dict[str, Any], runs: Runs, compared: dict[str, Any]) -> list[str]:
    """The lines of the page; its data lie in the folder of that name next to it."""
    batch_sizes = sorted({str(plan["batch_size"]) for plan in protocol["beds"].values()})
    lines = [
        f"# Which use of hard negatives helps? Heads on frozen features, batch {' and '.join(batch_sizes)}",
        "",
        *conclusion(compared),
        "",
        f"Heads on frozen features, trained by the sigmoid loss; {len(protocol['seeds'])} fresh seeds, paired: the systems of a seed have",
        "the same first weights, and at the same batch the same images in each step. Differences of mean R@1 (both directions) on test, in",
        "points, with 95% intervals over seeds (Student's t) and over test images (bootstrap). A verdict needs both, and a p corrected",
        "(Holm) for all rows of its table. Length and rate were tuned on val for plain training. Cost is counted in SigLIP base's towers,",
        "as if these were trained (a picture 3, a caption 1; the heads themselves cost next to nothing), minings included. At equal cost a",
        "system is compared with the plain training that is best on val of those that cost no more: more steps, or a larger batch.",
        "Margins are in logits at a scale of about 12, where SigLIP's is near 100: a preset's margin filters less here. Images and",
        "neighbours are simpler here than the trainer's forms of these names. Commands: `python -m benchmarks.heads --help`. Data:",
        f"[protocol.json]({folder}/protocol.json), [screening.json]({folder}/screening.json)",
        f"({len(protocol['screening seeds'])} other seeds, on val), [runs.parquet]({folder}/runs.parquet),",
        f"[comparisons.json]({folder}/comparisons.json).",
    ]  # fmt: skip
    for bed, plan in protocol["beds"].items():
        mine = [run for run in runs if run["bed"] == bed]
        num_images = len(mine[0]["by_image"])
        lines += [
            "",
            f"## {bed.capitalize()}: {plan['steps']} steps of {plan['batch_size']}, {num_images:,} test images",
            "",
            "| system | mean R@1 | image to text | text to image | R@5 | near-miss accuracy | mined each | cost |",
            "|---|---|---|---|---|---|---|---|",
        ]
        plain_cost = np.mean([run["cost"] for run in of_system(mine, PLAIN)])
        for name in plan["systems"]:
            own = of_system(mine, name)
            means = [100 * float(np.mean([run[key] for run in own])) for key in ("image_to_text", "text_to_image", "R@5", "near_miss")]
            figures = " | ".join(f"{value:.1f}" for value in (100 * mean_recalls(own).mean(), *means))
            mined, times = np.mean([run["mined"] for run in own]), np.mean([run["cost"] for run in own]) / plain_cost
            lines.append(f"| {name} | {figures} | {mined:.2f} | {times:.2f} |")
        lines += [
            "",
            "| system | against | difference | over seeds | over images | near misses | verdict |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in compared[bed]:
            near = f"{100 * row['near_miss_difference']:+.1f} {span(row['near_miss_ci95_seeds'])}"
            cells = [f"{100 * row['difference']:+.1f}", span(row["ci95_seeds"]), span(row["ci95_images"]), near, row["verdict"]]
            lines.append(f"| {row['system']} | {row['against']} | {' | '.join(cells)} |")
        left_out = {name: mean for name, mean in screening[bed]["mean_R@1"].items() if name not in plan["systems"]}
        base = screening[bed]["mean_R@1"][PLAIN]
        named = [f"{name} {100 * (mean - base):+.1f}" for name, mean in sorted(left_out.items(), key=lambda item: -item[1])]
        lines += ["", f"Screened out on val (less plain, {100 * base:.1f}): {', '.join(named)}."] if named else []
    return lines


def span(bounds: Sequence[float]) -> str:
    """An interval in points."""
    return f"[{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"


def conclusion(compared: dict[str, Any]) -> list[str]:
    """What is better or worse than plain training, at as many steps and at equal cost, on each bed."""
    lines = []
    gains = [row for rows in compared.values() for row in rows if row["system"] not in CONTROLS and row["verdict"] == "better"]
    if not gains:
        lines += ["**None that is better than plain tuning: not at as many steps, not at equal cost, on none of these data.**", ""]
    for bed, rows in compared.items():
        own = [row for row in rows if row["system"] not in CONTROLS]
        said = []
        for is_control, words in ((False, "plain"), (True, "plain at equal cost")):
            for verdict in ("better", "worse"):
                names = [
                    f"{row['system']} ({100 * row['difference']:+.1f})"
                    for row in own
                    if row["verdict"] == verdict and (row["against"] != PLAIN) == is_control
                ]
                said += [f"{verdict} than {words}: {', '.join(names)}"] if names else []
        lines.append(f"- **{bed.capitalize()}**: {'; '.join(said) or 'no evidence of any difference'}.")
    return lines

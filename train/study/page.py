"""What a study says: a few lines for the terminal, and a page in Markdown."""

from collections.abc import Sequence
from typing import Any

from eval.search.ranking import DIRECTIONS
from train.study.comparison import WHICH

_MISSING = ""
_RECALLS = [key for k in (1, 5) for key in (f"mean_R@{k}", *(f"R@{k}_{direction}" for direction in DIRECTIONS))]
_COLUMNS = (
    "system", *(key.replace("_", " ") for key in _RECALLS), "near-miss accuracy", "mined an image", "steps (chosen)", "seconds",
    "FLOPs (times the first's)",
)  # fmt: skip


def answer(record: dict[str, Any]) -> list[str]:
    """One line of each system: its mean R@1, what it gains over the first at how many times the compute, and the verdict."""
    first, lines = record["systems"][0], []
    width = max(len(row["system"]) for row in record["systems"])
    compared = {(row["system"], row["against"]): row for row in record["comparisons"]}
    for row in record["systems"]:
        line = f"{row['system']:<{width}}  {100 * row['mean_R@1']:5.1f}"
        if found := compared.get((row["system"], first["system"])):
            times = "" if row["flops"] is None else f" at {row['flops'] / first['flops']:.2f} x compute"
            line += f"  {_difference(found['both'])}{times}: {found['verdict']}"
            controls = [other for (name, against), other in compared.items() if name == row["system"] and against != first["system"]]
            for control in controls:
                line += f"; over {control['against']} {100 * control['both']['delta']:+.1f}: {control['verdict']}"
        lines.append(line)
    return lines


def _difference(row: dict[str, Any]) -> str:
    """A difference in points with its interval over seeds, or over images where there is one seed."""
    low, high = row["ci95_seeds"] or row["ci95_images"]
    return f"{100 * row['delta']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def page(record: dict[str, Any]) -> str:
    """The page of a finished study, from study.json."""
    protocol, data = record["protocol"], record["data"]
    seeds = protocol["seeds"]
    lines = [
        f"# Study: {', '.join(protocol['systems'])}",
        "",
        "```",
        *answer(record),
        "```",
        "",
        f"Mean R@1 of both directions on split {data['split']} ({data['num_images']:,} images, {data['num_captions']:,} captions), in",
        f"percent; differences in points, with 95% intervals. {len(seeds)} seed(s), {', '.join(map(str, seeds))}: the systems of a seed",
        "start from the same weights and see the images in the same order. Over seeds: Student's t, for another training run. Over images:",
        "paired bootstrap of all seeds together, for other test images. A verdict needs both, and its p is corrected (Holm) for all",
        "comparisons of the page. `no evidence` is an answer: more seeds, or a larger test split, may give another.",
        "",
        f"`{protocol['command']}`",
        "",
        "| system | changes |",
        "|---|---|",
        *(f"| {name} | {', '.join(f'`{change}`' for change in changes) or 'none'} |" for name, changes in protocol["systems"].items()),
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(_system(row, record["systems"][0]) for row in record["systems"]),
        "",
        "| comparison | direction | difference | over seeds | over images | by seed | verdict |",
        "|---|---|---|---|---|---|---|",
        *(line for row in record["comparisons"] for line in _comparison(row)),
    ]
    kept = list(dict.fromkeys(name for row in record["systems"] for name in row["retention"]))
    if kept:
        lines += ["", "Mean R@1 on the retention sets, less the base's:", ""]
        lines += [f"| system | {' | '.join(kept)} |", "|---" * (len(kept) + 1) + "|"]
        for row in record["systems"]:
            differences = [f"{100 * row['retention'][name]:+.1f}" if name in row["retention"] else _MISSING for name in kept]
            lines.append(f"| {row['system']} | {' | '.join(differences)} |")
    if screening := record.get("screening"):
        plan = protocol["screening"]
        lines += ["", f"Screened before, with {len(plan['seeds'])} other seed(s) and {plan['share']:g} of the steps:", ""]
        lines += ["| system | mean R@1 | went on |", "|---|---|---|"]
        lines += [f"| {row['system']} | {100 * row['mean_R@1']:.1f} | {'yes' if row['survives'] else 'no'} |" for row in screening]
    return "\n".join(lines) + "\n"


def _system(row: dict[str, Any], first: dict[str, Any]) -> str:
    near_miss = _MISSING if row["near_miss"] is None else f"{100 * row['near_miss']:.1f}"
    steps = ", ".join(f"{num} ({chosen})" for num, chosen in zip(row["num_steps"], row["chosen_steps"], strict=True))
    recalls = " | ".join(f"{100 * row[key]:.1f}" for key in _RECALLS)
    flops = _MISSING if row["flops"] is None else f"{row['flops']:.3g} ({row['flops'] / first['flops']:.2f})"
    return f"| {row['system']} | {recalls} | {near_miss} | {row['mined_per_image']:.2f} | {steps} | {row['seconds']:.0f} | {flops} |"


def _comparison(row: dict[str, Any]) -> list[str]:
    lines = []
    for which in WHICH:
        found = row[which]
        by_seed = ", ".join(f"{100 * delta:+.1f}" for delta in found["by_seed"])
        verdict = row["verdict"] if which == "both" else _MISSING
        lines.append(
            f"| {row['system']} against {row['against']} | {which.replace('_', ' ')} | {100 * found['delta']:+.1f} "
            f"| {_interval(found['ci95_seeds'])} | {_interval(found['ci95_images'])} | {by_seed} | {verdict} |"
        )
    return lines


def _interval(ends: Sequence[float] | None) -> str:
    return _MISSING if ends is None else f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"

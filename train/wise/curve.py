"""Weights between base and tuned, measured on val and on the retention sets. Source: Wortsman et al. 2022, arXiv 2109.01903, equation 1."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from eval.atomic import check_writable, replace_files
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.errors import UserError
from eval.process_group import use_exact_float32
from train.config.job import JobConfig
from train.data.splits import load_data
from train.engine.export_folder import plain_state
from train.engine.folder import check_replaceable
from train.model.siglip import TunedModel
from train.siglip.card import model_card
from train.siglip.export import export_model, load_checkpoint
from train.siglip.model_rows import measure_model, write_results
from train.siglip.watch import Recall


def interpolate(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """(1 - alpha) * base + alpha * tuned, weight by weight; at 0 and 1 the very bits (arithmetic would lose a zero's sign)."""
    if alpha in (0.0, 1.0):
        return dict(tuned if alpha else base)
    return {name: torch.lerp(base[name], tuned[name], alpha) for name in base}


def choose(on_val: Mapping[float, Recall], watched: Mapping[str, Mapping[float, Recall]]) -> tuple[float, str]:
    """(alpha, the reason): the best mean R@1 on val among those at which no retention set has dropped; 1 if there is none.

    Of equals the one nearer to the base.
    """
    qualified = [alpha for alpha in on_val if not any(recalls[alpha].dropped for recalls in watched.values())]
    if not qualified:
        return 1.0, "at every alpha a retention set has dropped: none qualifies, so it is that of the tuned weights"
    best = max(qualified, key=lambda alpha: (on_val[alpha].mean, -alpha))
    return best, f"the best mean R@1 on val among the {len(qualified)} of {len(on_val)} alphas at which no retention set has dropped"


def measure(
    model_at: Callable[[float], TunedModel], sets: Mapping[str, RetrievalSet], alphas: Sequence[float], num_workers: int
) -> dict[str, pa.Table]:
    """Per-query rows of each set, a stage per alpha (see `stage_name`)."""
    tables: dict[str, list[pa.Table]] = {name: [] for name in sets}
    for alpha in alphas:
        tuned = model_at(alpha)
        for name, dataset in sets.items():
            tables[name].append(measure_model(stage_name(alpha), tuned, dataset, num_workers, f"alpha {alpha:g} on {name}"))
    return {name: pa.concat_tables(parts) for name, parts in tables.items()}


def stage_name(alpha: float) -> str:
    """The name of an alpha in the per-query rows."""
    return f"alpha={alpha}"


def run(config: JobConfig, output: Path, alphas: Sequence[float], keep: Literal["best"] | float | None) -> dict[str, Any]:
    """Measure, draw, choose, export; what wise.json holds.

    Raises:
        UserError: the run, its data or its base cannot be used.
        OSError: something cannot be written.
    """
    use_exact_float32()
    output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    if keep is not None:
        check_replaceable(output / "export")
    check_writable(*(output / f"wise.{suffix}" for suffix in ("json", "png", "svg")))
    splits = load_data(config)
    if splits.val is None:
        raise UserError(f"{config.run_folder}: data.val_split is null, and alphas are compared on val; the run has none to compare them on")
    tuned, step, newest = load_checkpoint(config, "best")
    splits = splits.as_read_by(tuned.inputs)
    assert splits.val is not None
    sets = {"val": splits.val} | {f"watch-{watched.config.name}": watched.dataset for watched in splits.watch}
    siglip, _ = load_siglip(config.base)
    base = {name: value.detach().clone() for name, value in siglip.state_dict().items()}
    end = plain_state(tuned.siglip)

    def model_at(alpha: float) -> TunedModel:
        siglip.load_state_dict(interpolate(base, end, alpha))
        return TunedModel(siglip, tuned.inputs, newest.base_sha256)

    asked = sorted({*alphas, *([keep] if isinstance(keep, float) else [])})
    tables = measure(model_at, sets, sorted({0.0, *asked}), config.data.num_workers)  # base is what all are compared with
    recalls = {
        name: {alpha: Recall.of(dataset, tables[name], stage_name(alpha), stage_name(0.0)) for alpha in asked}
        for name, dataset in sets.items()
    }
    best, why = choose(recalls["val"], {name: found for name, found in recalls.items() if name != "val"})
    kept = best if keep == "best" else keep
    record = {
        "run": str(config.run_folder),
        "base": config.base,
        "step": step,
        "sets": {name: [{"alpha": alpha} | recall.as_record() for alpha, recall in found.items()] for name, found in recalls.items()},
        "best": best,
        "why": why,
        "kept": kept,
    }
    write_results(output / "wise.json", record, tables)
    draw_curve(output / "wise", recalls, best)
    if kept is not None:
        weights = f"WiSE-FT (arXiv 2109.01903), alpha {kept:g} of the way from the base to this checkpoint"
        weights += f"; mean R@1 on val {100 * recalls['val'][kept].mean:.2f}" if kept in recalls["val"] else ""
        export_model(model_at(kept), output / "export", model_card(config, newest, step if kept else 0, tuned.inputs, weights=weights))
    return record


def draw_curve(path: Path, recalls: Mapping[str, Mapping[float, Recall]], best: float) -> None:
    """Write PATH.png and PATH.svg, each committed by a rename; circles: no drop, crosses: an interval below the base.

    Raises:
        OSError: they cannot be written.
    """
    with rc_context({"svg.hashsalt": "wise"}):  # the same figures give the same file
        figure = Figure(figsize=(6, 4), layout="constrained")  # without pyplot: no display is looked for
        axes = figure.add_subplot(xlabel="alpha (0: base, 1: tuned)", ylabel="mean R@1, %")
        for number, (name, found) in enumerate(recalls.items()):
            alphas, colour = list(found), f"C{number}"
            axes.plot(alphas, [100 * found[alpha].mean for alpha in alphas], color=colour, label=name)
            low, high = ([100 * found[alpha].ci95[side] for alpha in alphas] for side in (0, 1))
            axes.fill_between(alphas, low, high, color=colour, alpha=0.15, linewidth=0)
            for alpha in alphas:
                axes.plot(alpha, 100 * found[alpha].mean, color=colour, marker="x" if found[alpha].dropped else "o")
        axes.axvline(best, color="grey", linestyle=":", label=f"chosen: {best:g}")
        axes.legend()
        png = partial(figure.savefig, format="png")
        svg = partial(figure.savefig, format="svg", metadata={"Date": None})
        replace_files({path.with_suffix(".png"): png, path.with_suffix(".svg"): svg})

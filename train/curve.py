"""The curve of WiSE-FT: mean R@1 of every set over alpha, with intervals, and the alpha chosen."""

import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from train.watch import Recall


def draw_curve(path: Path, recalls: Mapping[str, Mapping[float, Recall]], best: float) -> None:
    """Write PATH.png and PATH.svg, each committed by a rename; filled circles: no drop, crosses: below the base by more than the interval.

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
        for kind in ("png", "svg"):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.{kind}")
            figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
            os.replace(temporary, path.with_suffix(f".{kind}"))

"""The systems that are compared, by name; the first of a list is what the others are compared with."""

from benchmarks.heads.forms import System
from train.config.mining import PRESETS as MINING_PRESETS

PLAIN = "plain"
CONTROLS = {f"plain x{times:g}": System(steps=times) for times in (1.5, 2.0, 3.0)} | {"plain, batch x2": System(batch=2.0)}
"""Plain training for more steps, or at a larger batch: what the same compute buys."""
PRESETS = {
    name: System(
        form="columns", count=keys["negatives_per_image"], weight=keys["weight"], margin=keys["margin"], rank_min=keys.get("rank_min", 1)
    )
    for name, keys in MINING_PRESETS.items()
}
TWO = "two captions"
# The trainer's forms `images` and `neighbours` compose batches; here hard images are columns like the captions, and neighbours take the
# place of images that come in a later batch.
OTHERS = {
    TWO: System(captions=2),
    "four captions": System(captions=4),
    "two captions, standard": System(captions=2, form="columns"),
    "random columns": System(form="columns", random=True),
    "columns with own bias": System(form="own_bias"),
    "ranking": System(form="ranking", weight=0.1),
    "images": System(form="images"),
    "columns and images": System(form="both"),
    "hardness 0.5": System(hardness=0.5),
    "neighbours, half": System(neighbours=0.5),
    "neighbours": System(neighbours=1.0),
    "late, plain": System(late=True),
    "late, standard": System(late=True, form="columns"),
    "moving average": System(ema=0.98),
}
SYSTEMS = {PLAIN: System()} | CONTROLS | PRESETS | OTHERS
LENGTHS = {f"plain x{times:g}": System(steps=times) for times in (0.25, 0.5, 0.75, 1.5, 2.0)} | {PLAIN: System()}
"""Lengths of plain training that `tune` tries: more is not better where it overfits."""

"""What is made of what is mined: further columns of the loss, or batches that bring hard pairs together (`mining.form`).

Which images a step trains on follows from (seed, step) and, in the forms `images` and `neighbours`, from the table in force and the step
it was mined at. Both are part of a checkpoint, so a resumed run composes the batches of the straight one; and they are the same on every
process.
"""

from eval.dataset import RetrievalSet
from train.batches import BatchOrder, Order
from train.config import MiningConfig
from train.negatives import Negatives
from train.neighbours import NeighbourOrder, Neighbours
from train.seeds import HardImageOrder, HardImages, SeedOrder


def order_in_force(
    mining: MiningConfig | None, base: BatchOrder, dataset: RetrievalSet, table: Negatives | None, mined_at_step: int | None
) -> Order:
    """The order of the steps up to the next mining.

    Args:
        table, mined_at_step: the table in force and the step whose weights it was mined with; None before the first.
    """
    if mining is not None and mining.form == "images":
        hard = HardImages.of_table(table, dataset.num_captions) if table is not None else None
        return HardImageOrder(seed_order(mining, base), dataset, hard)
    if mining is not None and mining.form == "neighbours" and table is not None and mined_at_step is not None:
        window = range(mined_at_step + 1, mined_at_step + mining.mine_every_steps + 1)
        return NeighbourOrder(base, window, Neighbours.of_table(table, dataset))
    return base


def columns_in_force(mining: MiningConfig | None, table: Negatives | None) -> Negatives | None:
    """The table whose captions are further columns of the loss, if any is."""
    return table if mining is not None and mining.form == "columns" else None


def num_epochs(mining: MiningConfig | None, base: BatchOrder, step: int) -> float:
    """Passes over the images after `step` steps; in the form `images`, passes in which each is a seed."""
    if mining is not None and mining.form == "images":
        return seed_order(mining, base).num_epochs(step)
    return step / base.steps_per_epoch


def describe_form(mining: MiningConfig | None, base: BatchOrder) -> list[str]:
    """What a person should know of composed batches before the first step; nothing where batches are slices of the order."""
    if mining is None or mining.form == "columns":
        return []
    if mining.form == "images":
        seeds = seed_order(mining, base)
        return [
            f"batches   {seeds.num_seeds} seeds and up to {mining.negatives_per_image} hard images of each one's caption a step: "
            f"{seeds.steps_per_epoch:,} steps an epoch (each image a seed once), not {base.steps_per_epoch:,}"
        ]
    line = f"batches   of neighbours, among the images due in the {mining.mine_every_steps:,} steps from one mining to the next"
    if mining.mine_every_steps < base.steps_per_epoch:
        share = mining.mine_every_steps / base.steps_per_epoch
        line += f": {100 * share:.0f}% of an epoch, and no more of an image's neighbours are due with it; mine less often to gather more"
    return [line]


def seed_order(mining: MiningConfig, base: BatchOrder) -> SeedOrder:
    """The seeds of the form `images`."""
    return SeedOrder(base, mining.start_step, base.batch_size // (1 + mining.negatives_per_image))

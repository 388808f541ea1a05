"""What is made of what is mined: further columns of the loss, or batches that bring hard pairs together (`mining.form`).

Which images a step trains on follows from (seed, step) and, in the forms `images` and `neighbours`, from the table in force and the step
it was mined at. Both are part of a checkpoint, so a resumed run composes the batches of the straight one; and they are the same on every
process.
"""

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from train.config.mining import MiningConfig
from train.data.hard_image_order import AnchorOrder, HardImageOrder, HardImages, Turns
from train.data.negatives import Negatives
from train.data.neighbour_order import NeighbourOrder, Neighbours
from train.data.order import BatchOrder, Order


def turns_of(mining: MiningConfig | None, base: BatchOrder) -> Turns:
    """The images of the plain order; in the form `images` fewer a step, the seeds."""
    if mining is not None and mining.form == "images":
        return AnchorOrder(base, mining.start_step, base.batch_size // (1 + mining.negatives_per_image))
    return base


def order_in_force(
    mining: MiningConfig | None, turns: Turns, dataset: RetrievalSet, table: Negatives | None, mined_at_step: int | None, max_steps: int
) -> Order:
    """The order of the steps up to the next mining.

    Args:
        table, mined_at_step: the table in force and the step whose weights it was mined with; None before the first.
        max_steps: of the run, which the last window does not look beyond.
    """
    if isinstance(turns, AnchorOrder):
        return HardImageOrder(turns, dataset, HardImages.of_table(table, dataset.num_captions) if table is not None else None)
    if mining is not None and mining.form == "neighbours" and table is not None and mined_at_step is not None:
        window = range(mined_at_step + 1, min(mined_at_step + refresh_every(mining, turns), max_steps) + 1)
        return NeighbourOrder(turns, window, Neighbours.of_table(table, dataset))
    return turns


def columns_in_force(mining: MiningConfig | None, table: Negatives | None) -> Negatives | None:
    """The table whose captions are further columns of the loss, if any is."""
    return table if mining is not None and mining.form == "columns" else None


def describe_form(mining: MiningConfig | None, turns: Turns) -> list[str]:
    """What a person should know of composed batches before the first step; nothing where batches are slices of the order."""
    if mining is None or mining.form == "columns":
        return []
    if isinstance(turns, AnchorOrder):
        return [
            f"batches   {turns.num_seeds} seeds and up to {mining.negatives_per_image} hard images of each one's caption a step: "
            f"{turns.steps_per_epoch:,} steps an epoch (each image a seed once), not {turns.base.steps_per_epoch:,}"
        ]
    every = refresh_every(mining, turns)
    line = f"batches   of neighbours, among the images due in the {every:,} steps from one mining to the next"
    if every < turns.steps_per_epoch:
        share = every / turns.steps_per_epoch
        line += f": {100 * share:.0f}% of an epoch, and no more of an image's neighbours are due with it; mine less often to gather more"
    return [line]


def refresh_every(mining: MiningConfig, order: Turns) -> int:
    """Steps between two refreshes."""
    if mining.mine_every_steps is not None:
        return mining.mine_every_steps
    assert mining.mine_every_epochs is not None  # the configuration has exactly one
    return mining.mine_every_epochs * order.steps_per_epoch


def is_due(mining: MiningConfig, order: Turns, step: int) -> bool:
    """Whether negatives are mined with the weights after `step` steps: at start_step, and from there at every refresh."""
    return step >= mining.start_step and (step - mining.start_step) % refresh_every(mining, order) == 0


def images_due(mining: MiningConfig, order: Turns, step: int, max_steps: int) -> np.ndarray | None:
    """The images to mine for after `step` steps, int64, ascending: with scope window those of the steps to the next refresh; None: all.

    A picture that does not decode is replaced in its batch by another image, which may be of no window and then has no negatives.
    """
    if mining.scope == "split":
        return None
    first, last = step + 1, min(step + refresh_every(mining, order), max_steps)
    return np.unique(np.concatenate([order.images(due) for due in range(first, last + 1)]))

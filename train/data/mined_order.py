"""How mined pairs are used (`mining.form`): as additional columns of the loss, or in batches that bring hard pairs together.

The images of a step follow from (seed, step) and, in the forms `images` and `neighbours`, from the current table and the step it was mined
at. Both are part of a checkpoint, so a resumed run composes the same batches; they are the same on every process.
"""

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from train.config.mining import MiningConfig
from train.data.hard_image_order import AnchorOrder, EpochOrder, HardImageOrder, HardImages
from train.data.negatives import Negatives
from train.data.neighbour_order import NeighbourOrder, Neighbours
from train.data.order import BatchOrder

Order = BatchOrder | HardImageOrder | NeighbourOrder
"""Which images each step trains on: slices of the epoch's order, or batches composed of mined pairs."""


def epoch_order(mining: MiningConfig | None, base: BatchOrder) -> EpochOrder:
    """The plain order; in the form `images` that of the anchors, fewer a step."""
    if mining is not None and mining.form == "images":
        return AnchorOrder(base, mining.start_step, base.batch_size // (1 + mining.negatives_per_image))
    return base


def order_in_force(
    mining: MiningConfig | None,
    order: EpochOrder,
    dataset: RetrievalSet,
    table: Negatives | None,
    mined_at_step: int | None,
    max_steps: int,
) -> Order:
    """The order of the steps up to the next mining.

    Args:
        table, mined_at_step: the current table and the step whose weights it was mined with; None before the first.
        max_steps: of the run, where the last window ends.
    """
    if isinstance(order, AnchorOrder):
        return HardImageOrder(order, dataset, HardImages.of_table(table, dataset.num_captions) if table is not None else None)
    if mining is not None and mining.form == "neighbours" and table is not None and mined_at_step is not None:
        window = range(mined_at_step + 1, min(mined_at_step + refresh_every(mining, order), max_steps) + 1)
        return NeighbourOrder(order, window, Neighbours.of_table(table, dataset))
    return order


def columns_in_force(mining: MiningConfig | None, table: Negatives | None) -> Negatives | None:
    """The table whose captions are additional columns of the loss; None in the other forms."""
    return table if mining is not None and mining.form == "columns" else None


def describe_form(mining: MiningConfig | None, order: EpochOrder) -> list[str]:
    """Lines to print before the first step about composed batches; none where batches are slices of the order."""
    if mining is None or mining.form == "columns":
        return []
    if isinstance(order, AnchorOrder):
        return [
            f"batches   {order.num_anchors} anchors and up to {mining.negatives_per_image} hard images for each anchor's caption a step: "
            f"{order.steps_per_epoch:,} steps an epoch (each image an anchor once), not {order.base.steps_per_epoch:,}"
        ]
    every = refresh_every(mining, order)
    line = f"batches   of neighbours, among the images due in the {every:,} steps from one mining to the next"
    if every < order.steps_per_epoch:
        share = every / order.steps_per_epoch
        line += f": {100 * share:.0f}% of an epoch, so most of an image's neighbours are not among them; mine less often to include more"
    return [line]


def refresh_every(mining: MiningConfig, order: EpochOrder) -> int:
    """Steps between two refreshes."""
    if mining.mine_every_steps is not None:
        return mining.mine_every_steps
    assert mining.mine_every_epochs is not None  # the configuration has exactly one
    return mining.mine_every_epochs * order.steps_per_epoch


def is_due(mining: MiningConfig, order: EpochOrder, step: int) -> bool:
    """Whether negatives are mined with the weights after `step` steps: at start_step, and from there at every refresh."""
    return step >= mining.start_step and (step - mining.start_step) % refresh_every(mining, order) == 0


def images_due(mining: MiningConfig, order: EpochOrder, step: int, max_steps: int) -> np.ndarray | None:
    """The images to mine for after `step` steps, int64, ascending: in scope `window` those of the steps to the next refresh; None: all.

    An image that does not decode is replaced in its batch; a replacement from outside the window has no negatives.
    """
    if mining.scope == "split":
        return None
    first, last = step + 1, min(step + refresh_every(mining, order), max_steps)
    return np.unique(np.concatenate([order.images(due) for due in range(first, last + 1)]))

"""When negatives are mined, and for which images: both follow from the step's number, so a resumed run mines as the straight one."""

import numpy as np

from train.config import MiningConfig
from train.seeds import Turns


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

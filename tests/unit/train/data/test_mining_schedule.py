"""train/data/mined_order.py: when and for which images negatives are mined."""

from typing import Any

import numpy as np
import pytest

from train.config.mining import MiningConfig
from train.data.mined_order import images_due, is_due, refresh_every
from train.data.order import BatchOrder

ORDER = BatchOrder(num_images=22, batch_size=4, seed=1)  # five steps an epoch, two images left out of each


@pytest.mark.parametrize(
    ("keys", "every", "due"),
    [
        ({"mine_every_steps": 4}, 4, [0, 4, 8, 12, 16]),
        ({"mine_every_steps": 4, "start_step": 3}, 4, [3, 7, 11, 15, 19]),
        ({"mine_every_epochs": 1}, 5, [0, 5, 10, 15]),
        ({"mine_every_epochs": 2, "start_step": 1}, 10, [1, 11]),
    ],
)
def test_when(keys: dict[str, Any], every: int, due: list[int]) -> None:
    mining = MiningConfig.model_validate(keys)
    assert refresh_every(mining, ORDER) == every
    assert [step for step in range(20) if is_due(mining, ORDER, step)] == due


@pytest.mark.parametrize("keys", [{"mine_every_steps": 3}, {"mine_every_epochs": 1}, {"mine_every_steps": 7, "start_step": 2}])
def test_a_window_holds_every_image_of_its_steps_and_no_other(keys: dict[str, Any]) -> None:
    mining, max_steps = MiningConfig.model_validate(keys | {"scope": "window"}), 17
    in_force: np.ndarray | None = None
    for step in range(max_steps):
        if is_due(mining, ORDER, step):
            in_force = images_due(mining, ORDER, step, max_steps)
            assert in_force is not None and np.array_equal(in_force, np.unique(in_force))
            due = {int(i) for s in range(step + 1, min(step + refresh_every(mining, ORDER), max_steps) + 1) for i in ORDER.images(s)}
            assert set(in_force.tolist()) == due
        if in_force is not None:
            assert np.isin(ORDER.images(step + 1), in_force).all()
    assert images_due(MiningConfig.model_validate(keys), ORDER, 0, max_steps) is None

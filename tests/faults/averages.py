"""What a run with train.ema_decay left behind, against the recursion over its own checkpoints in float64."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

EVERY_STEP = {"train__checkpoint_every_steps": 1, "train__keep_checkpoints": 100}
"""Every step's weights are there to be averaged."""


def file_of(run_folder: Path, step: int, name: str) -> dict[str, np.ndarray]:
    """weights, optimizer or average of a step."""
    return load_file(run_folder / "checkpoints" / f"step-{step}" / f"{name}.safetensors")


def assert_averages(run_folder: Path, decay: float, num_steps: int) -> None:
    """The averages of every checkpoint are d * average + (1 - d) * weight, with d = min(decay, (1 + t) / (10 + t)) at step t."""
    weights = [file_of(run_folder, step, "weights") for step in range(num_steps + 1)]
    expected = {name: value.astype(np.float64) for name, value in weights[0].items()}
    moved = 0.0
    for step in range(num_steps + 1):
        if step:
            factor = min(decay, (1 + step) / (10 + step))
            expected = {name: factor * old + (1 - factor) * weights[step][name] for name, old in expected.items()}
        found = file_of(run_folder, step, "average")
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=f"{name} at step {step}")
            moved = max(moved, float(np.abs(value - weights[step][name]).max()))
    assert moved > 1e-4  # far more than the tolerance: averages are not the weights

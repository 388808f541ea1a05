"""Weights in parts on two processes: the same losses, gradients, weights and embeddings as with a replica on each; and a whole job of it."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration.train.sharded import CASES, MAX_GRAD_NORM, NUM_STEPS, Case
from tests.nursery import Nursery
from tests.small_job import SmallWorld, write_pictures


@pytest.fixture(scope="module")
def steps(small_world: SmallWorld, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what tests/integration/train/sharded.py writes."""
    folder = tmp_path_factory.mktemp("sharded")
    manifest = write_pictures(tmp_path_factory.mktemp("wide"), {"train": 64})
    children = nursery.start_ranks("tests.integration.train.sharded", [str(manifest), str(small_world.base), str(folder)], 2)
    assert [child.wait() for child in children] == [0, 0], children[0].output() + children[1].output()
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parts_take_the_steps_of_replicas(steps: Path, case: Case) -> None:
    replicas, parts = (dict(np.load(steps / f"{case.name}-{arm}.npz")) for arm in ("replicas", "parts"))
    assert replicas.keys() == parts.keys() and len(replicas["losses"]) == NUM_STEPS
    assert (replicas["norms"] > MAX_GRAD_NORM).all()  # every step was clipped, by a norm over all parts
    tolerance = 1e-10 if case.double else 1e-5
    for kind in ("losses", "norms", "gradient ", "weight ", "moment ", "images ", "texts "):
        names = [name for name in replicas if name.startswith(kind)]
        norm = np.sqrt(sum(np.sum(replicas[name] ** 2) for name in names))
        for name in names:  # by the norm of all of a kind, as promise 1 measures: the bias of a key has a gradient of 0, but for rounding
            assert np.linalg.norm(parts[name] - replicas[name]) <= tolerance * norm, name
    assert np.abs(replicas["images after"] - replicas["images before"]).max() > 1e-3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_process_holds_its_part_of_every_weight_but_scale_and_bias(steps: Path, case: Case) -> None:
    replicas, parts = (dict(np.load(steps / f"{case.name}-{arm}.npz")) for arm in ("replicas", "parts"))
    for name, (first, second, whole) in ((name, value) for name, value in parts.items() if name.startswith("held ")):
        assert replicas[name].tolist() == [whole] * 3
        assert [first, second] == [1, 1] if name in ("held logit_scale", "held logit_bias") else first + second == whole, name
    held = np.sum([value for name, value in parts.items() if name.startswith("held ")], axis=0)
    assert held[0] < 0.51 * held[2] and held[1] < 0.51 * held[2]

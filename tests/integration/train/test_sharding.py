"""Weights in parts on two processes: losses, gradients, weights and embeddings as with a replica on each; and a whole job of it."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.faults.averages import EVERY_STEP, assert_averages
from tests.faults.runs import Run, assert_same, lines, said
from tests.integration.train.sharded import CASES, MAX_GRAD_NORM, NUM_STEPS, Case
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld, write_pictures

CHANGES: dict[str, Any] = {"train__max_steps": 6, "train__learning_rate": 1e-4, "train__checkpoint_every_steps": 5}
"""Evaluations at 0, 3 and 6, a mining at 4; a low rate, for Adam makes much of the last bits of a small gradient."""


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
    tolerance = {"floa": 1e-10 if case.double else 1e-5, "bf16": 1e-3, "fp16": 1e-3}[case.name[:4]]
    for kind in ("losses", "norms", "gradient ", "weight ", "moment ", "images ", "texts "):
        names = [name for name in replicas if name.startswith(kind)]
        norm = np.sqrt(sum(np.sum(replicas[name] ** 2) for name in names))
        for name in names:  # by the norm of all of a kind: the bias of a key has a gradient of 0, but for rounding (docs/numerics.md)
            assert np.linalg.norm(parts[name] - replicas[name]) <= tolerance * norm, name
    trains = "texts" if "image" in case.freeze else "images"
    assert np.abs(replicas[f"{trains} after"] - replicas[f"{trains} before"]).max() > 1e-3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_process_holds_its_part_of_every_weight_but_scale_and_bias(steps: Path, case: Case) -> None:
    replicas, parts = (dict(np.load(steps / f"{case.name}-{arm}.npz")) for arm in ("replicas", "parts"))
    for name, (first, second, whole) in ((name, value) for name, value in parts.items() if name.startswith("held ")):
        assert replicas[name].tolist() == [whole] * 3
        assert [first, second] == [1, 1] if name in ("held logit_scale", "held logit_bias") else first + second == whole, name
    held = np.sum([value for name, value in parts.items() if name.startswith("held ")], axis=0)
    most = 0.6 if case.lora else 0.51  # an adapter of rank 3 is two rows and one
    assert held[0] < most * held[2] and held[1] < most * held[2]


def of(run: Run, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(run.folder) if line["event"] == event]


@pytest.fixture(scope="module")
def straight(small_world: SmallWorld, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Run]:
    """train.shard -> the undisturbed run of two processes."""
    runs = {}
    for shard in (False, True):
        runs[shard] = Run.make(nursery, small_world, tmp_path_factory.mktemp("straight"), 2, **CHANGES, train__shard=shard)
        runs[shard].finish()
    return runs


def test_a_job_in_parts_is_one_of_replicas(straight: dict[bool, Run]) -> None:
    """Loss after loss, with what was mined, evaluated and exported."""
    replicas, parts = straight[False], straight[True]
    for event, keys in (
        ("step", ("loss", "loss_mined", "grad_norm", "num_mined")),
        ("eval", ("mean_R@1", "best")),
        ("mining", ("num_mined",)),
    ):
        found, expected = of(parts, event), of(replicas, event)
        assert len(found) == len(expected) > 0
        for line, other in zip(found, expected, strict=True):
            assert {key: line[key] for key in keys} == pytest.approx({key: other[key] for key in keys}, rel=1e-5)
    assert of(parts, "step")[-1]["num_mined"] > 0
    weights = [load_file(run.folder / "export" / "model.safetensors") for run in (parts, replicas)]
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[1].items():
        np.testing.assert_allclose(weights[0][name], expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_job_in_parts_that_is_stopped_and_killed_goes_on(
    small_world: SmallWorld, nursery: Nursery, straight: dict[bool, Run], tmp_path: Path
) -> None:
    """One told to stop in the middle of an evaluation, which both leave together; then one killed in the middle of a step."""
    run = Run.make(nursery, small_world, tmp_path, 2, **CHANGES, train__shard=True)
    stopped = run.start(traps={0: Trap("train.siglip.loop:retrieve", 2, signal.SIGTERM)})
    assert [child.wait() for child in stopped] == [143, 143], stopped[0].output()
    assert (run.folder / "checkpoints" / "step-3").is_dir() and len(of(run, "step")) == 3
    killed = run.start(traps={1: Trap("train.optim.update:Gradients.norm", 2)})
    assert killed[1].wait() == -signal.SIGKILL
    killed[0].kill(signal.SIGKILL)  # as a launcher would
    killed[0].wait()
    assert len(of(run, "step")) == 4
    run.finish()
    assert said(run.folder) == said(straight[True].folder)
    assert_same(run, straight[True])  # at two processes, where the order of a sum cannot differ


@pytest.mark.slow
def test_adapters_and_a_frozen_tower_in_parts_are_a_job_of_replicas_and_go_on(
    small_world: SmallWorld, nursery: Nursery, tmp_path: Path
) -> None:
    """The frozen tower is run once, over its parts; one is killed in the middle of a step."""
    changes = CHANGES | {"model__lora": {"rank": 4, "alpha": 8}, "model__freeze": ["image"]}
    straight, run, replicas = (
        Run.make(nursery, small_world, tmp_path / name, 2, **changes, train__shard=name != "replicas")
        for name in ("straight", "killed", "replicas")
    )
    straight.finish()
    replicas.finish()
    for event, keys in (("step", ("loss", "grad_norm", "num_mined")), ("eval", ("mean_R@1",))):
        for key in keys:
            found, expected = ([line[key] for line in of(job, event)] for job in (straight, replicas))
            assert len(found) > 2 and found == pytest.approx(expected, rel=1e-5), key
    weights = [load_file(job.folder / "export" / "model.safetensors") for job in (straight, replicas)]
    for name, expected in weights[1].items():
        np.testing.assert_allclose(weights[0][name], expected, rtol=1e-3, atol=1e-5, err_msg=name)
    killed = run.start(traps={1: Trap("train.optim.update:Gradients.norm", 6)})
    assert killed[1].wait() == -signal.SIGKILL
    killed[0].kill(signal.SIGKILL)
    killed[0].wait()
    run.finish()
    assert_same(run, straight)


@pytest.mark.slow
def test_averages_in_parts_are_the_recursion_and_go_on(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    """train.ema_decay: each process averages its part; stopped in the middle of an evaluation, whose weights are the averages."""
    changes = CHANGES | EVERY_STEP | {"train__learning_rate": 3e-3, "train__shard": True, "train__ema_decay": 0.9}
    straight, run = (Run.make(nursery, small_world, tmp_path / name, 2, **changes) for name in ("straight", "stopped"))
    straight.finish()
    assert_averages(straight.folder, 0.9, 6)
    best = max(line["step"] for line in of(straight, "eval") if line["best"])
    exported = load_file(straight.folder / "export" / "model.safetensors")
    averages = load_file(straight.folder / f"checkpoints/step-{best}" / "average.safetensors")
    assert best > 0 and all(np.array_equal(exported[name], value) for name, value in averages.items())
    stopped = run.start(traps={0: Trap("train.siglip.loop:retrieve", 2, signal.SIGTERM)})
    assert [child.wait() for child in stopped] == [143, 143], stopped[0].output()
    run.finish()
    assert_same(run, straight)
    for step in range(7):
        one, two = ((job.folder / f"checkpoints/step-{step}/average.safetensors").read_bytes() for job in (run, straight))
        assert one == two, step


def test_a_loss_that_is_not_finite_ends_both_with_5(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    """Both processes search for the tensors at fault together."""
    changes = {"train__learning_rate": 1e30, "train__warmup_steps": 0, "mining": None, "data__val_split": None}
    run = Run.make(nursery, small_world, tmp_path, 2, **changes, train__shard=True)
    children = run.start()
    assert [child.wait() for child in children] == [5, 5], children[0].output()
    assert "Nothing of it was kept" in children[0].output() and "Traceback" not in children[0].output()


def test_one_process_has_nothing_to_share_out(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    child = nursery.start("train", [str(small_world.write_config(tmp_path, train__shard=True))])
    assert child.wait() == 2 and "there is only one; start several" in child.output() and "Traceback" not in child.output()

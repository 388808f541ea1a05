"""A whole job with train.compile: mining, averages, evaluation, a kill and a resume, an export; against the job without it."""

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.faults.runs import Run, assert_same, lines, said
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld

CHANGES: dict[str, Any] = {"train__learning_rate": 1e-4, "train__ema_decay": 0.9, "train__checkpoint_every_steps": 1}
"""A low rate, for Adam makes much of the last bits of a small gradient."""


@pytest.mark.slow
def test_a_compiled_job_is_one_without_and_resumes_to_the_same_bits(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    plain, straight, killed = (
        Run.make(nursery, small_world, tmp_path / name, 1, **CHANGES, train__compile=compiled)
        for name, compiled in (("plain", False), ("straight", True), ("killed", True))
    )
    plain.finish()
    straight.finish()
    for event, key in (("step", "loss"), ("step", "grad_norm"), ("step", "num_mined"), ("eval", "mean_R@1")):
        found, expected = ([line[key] for line in lines(run.folder) if line["event"] == event] for run in (straight, plain))
        assert len(found) > 3 and found == pytest.approx(expected, rel=1e-5), key
    names = [set(safe_open(run.folder / "export" / "model.safetensors", "pt").keys()) for run in (straight, plain)]
    assert names[0] == names[1]
    (child,) = killed.start(trap=Trap("train.optim.update:Gradients.norm", 6))
    assert child.wait() != 0
    killed.finish()
    assert said(killed.folder) == said(straight.folder)
    assert_same(killed, straight)

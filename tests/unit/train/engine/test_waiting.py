"""A run that waits for its pictures says so once, with the keys that help; train/engine/loop.py and run.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.encoder.checkpoint import load_inputs
from tests.small_job import SmallWorld, load
from train.config.job import JobConfig
from train.data.splits import Splits
from train.engine.loop import BaseLoop
from train.engine.run import Run


class _Loop:
    """What of a loop counts waiting."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._waits: list[tuple[float, float]] = []
        self._run: Any = SimpleNamespace(log=self.said.append, waiting_line=lambda share: f"{share:.2f}")

    tell = BaseLoop._tell_waiting


@pytest.mark.parametrize(("waits", "said"), [((0.2, 0.2), []), ((0.9, 0.2), []), ((0.1, 0.4), ["warning: 0.40"])])
def test_said_once_of_the_later_half_of_the_first_steps(waits: tuple[float, float], said: list[str]) -> None:
    loop = _Loop()
    for step in range(200):
        loop.tell(waits[step >= 30] * 2.0, 2.0)  # type: ignore[misc]
    assert loop.said == said


def test_it_names_workers_and_the_disk_that_a_cache_takes(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """768 bytes for each of 68 pictures at 16 x 16; of 8 cores for 2 processes 4 each."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    splits = Splits(*(load(small_world.manifest, split) for split in ("train", "val", "test")), {})

    def line(**changes: Any) -> str:
        config = JobConfig.model_validate(small_world.record(tmp_path, **changes))
        run: Any = SimpleNamespace(config=config, splits=splits, tuned=SimpleNamespace(inputs=load_inputs(str(small_world.base))))
        return Run.waiting_line(run, 0.4)

    assert line(data__num_workers=2).split("; ") == [
        "40% of the steps' time goes into waiting for pictures",
        "data.num_workers=4 would use all 8 cores (now 2 for each of 2 process(es))",
        "data.cache_pixels=0.1 (GiB of disk) decodes each picture once, not once an epoch (docs/pixel-cache.md)",
    ]
    assert line(data__num_workers=4, data__cache_pixels=1) == "40% of the steps' time goes into waiting for pictures"

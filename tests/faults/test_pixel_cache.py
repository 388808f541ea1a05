"""data.cache_pixels: a run with it is the run without it to the last bit: the first and again, killed, on two processes, on a full disk."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Run, assert_same
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld


@pytest.fixture(scope="module")
def world(small_world: SmallWorld) -> SmallWorld:
    """Its pictures have not changed for a while."""
    for path in (small_world.manifest.parent / "pictures").iterdir():
        changed = path.stat().st_mtime - 100
        os.utime(path, (changed, changed))
    return small_world


def cached(nursery: Nursery, world: SmallWorld, folder: Path, world_size: int = 1, **changes: Any) -> Run:
    return Run.make(nursery, world, folder, world_size, data__cache_pixels=0.01, **{"data__num_workers": 1, **changes})


def test_killed_while_it_fills_then_filled_then_full(
    nursery: Nursery, world: SmallWorld, straight: dict[int, Run], tmp_path: Path
) -> None:
    environment = {"HF_ASSETS_CACHE": str(tmp_path / "assets")}
    two = cached(nursery, world, tmp_path / "two", world_size=2, data__num_workers=0)
    trap = Trap("eval.dataset.pixel_cache:PixelCache._write", nth=5)
    assert -9 in [child.wait() for child in two.start(env=environment, traps={1: trap})]
    output = two.finish(env=environment)[0].output()
    assert_same(two, straight[2])
    assert "pixels    resized pictures are cached in" in output
    again = cached(nursery, world, tmp_path / "again")
    refused = Trap("eval.dataset.pixel_cache:PixelCache._write")  # everything is there: a run that wrote would be killed
    output = again.finish(env=environment, trap=refused)[0].output()
    assert_same(again, straight[1])
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    assert f"holds {len(rows):,} of at most" in output
    assert len(list((tmp_path / "assets" / "siglip-tuner" / "pixels").iterdir())) == 1


@pytest.mark.slow  # tests/unit/eval/dataset/test_pixel_cache.py has it in short
def test_a_full_disk_is_said_and_ends_nothing(
    nursery: Nursery, world: SmallWorld, straight: dict[int, Run], tmp_path: Path, small_disk: Path
) -> None:
    run = cached(nursery, world, tmp_path / "run")
    with (small_disk / "other").open("wb") as file:  # all but 40 KiB
        file.write(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 40 * 1024))
    output = run.finish(env={"HF_ASSETS_CACHE": str(small_disk)})[0].output()
    assert_same(run, straight[1])
    assert output.count("no more pictures can be cached there (No space left on device)") == 1

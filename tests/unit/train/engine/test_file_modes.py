"""Under every umask what the commands of train/ write is as open as any new file: exports, soups, checkpoints, a base from nothing."""

from pathlib import Path

import pytest

from tests.shared_files import modes, umask
from tests.small_job import TINY, SmallWorld, load
from train.config.job import TrainConfig
from train.config.model import ModelConfig
from train.engine.checkpoint import Checkpoints, State
from train.model.random_init import write_scratch
from train.model.siglip import build_model, make_optimizer
from train.siglip.export import export_model
from train.soup.make import run as make_soup

TRAIN = TrainConfig(max_steps=9, batch_size=8, learning_rate=1e-2, eval_every_steps=3, checkpoint_every_steps=3)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o027, 0o640)])
def test_every_file_gets_what_the_umask_leaves(small_world: SmallWorld, tmp_path: Path, mask: int, expected: int) -> None:
    tuned = build_model(ModelConfig(base=str(small_world.base)), str(small_world.base))
    with umask(mask):
        export_model(tuned, tmp_path / "export", "card")
        export_model(tuned, tmp_path / "export", "card")  # in the place of the one before
        write_scratch(tmp_path / "scratch", TINY, load(small_world.manifest), 0)
        make_soup([str(tmp_path / "scratch"), str(tmp_path / "export")], tmp_path / "soup", is_greedy=False, data=None)
        state = State(evaluated=True, base_sha256="base", data_sha256="data")
        Checkpoints(tmp_path / "checkpoints").save(state, tuned, make_optimizer(tuned, TRAIN), None)
    for name in ("export", "soup", "checkpoints", "scratch"):
        assert modes(tmp_path / name) == {expected}, name

"""A precision that a device would emulate is refused by every command that takes one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval.errors import UserError
from eval.process_group import without_bf16
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from tests.small_job import SmallWorld
from train.config.load import load_config
from train.engine import distributed


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_that_a_gpu_would_emulate_is_refused(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or has_bf16

    monkeypatch.setattr("torch.cuda.is_bf16_supported", is_supported)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    gpu: Any = SimpleNamespace(device=torch.device("cuda", 0), num_processes=1)
    monkeypatch.setattr(distributed, "Accelerator", lambda **_: gpu)
    train = load_config(small_world.write_config(tmp_path, train__precision="bf16")).train
    assert without_bf16(torch.device("cpu")) == ""
    if has_bf16:
        assert without_bf16(gpu.device) == "" and distributed.start_distributed(train, lambda processes: None)[0] is gpu
        return
    with pytest.raises(UserError, match=r"train.precision bf16: Tesla T4 has no bfloat16 of its own .* Take train.precision=fp16"):
        distributed.start_distributed(train, lambda processes: None)
    with pytest.raises(UserError, match="precision bfloat16: Tesla T4 has no bfloat16 of its own"):
        load_scorer("none is read", device="cuda", settings=ScorerSettings(precision="bfloat16"))

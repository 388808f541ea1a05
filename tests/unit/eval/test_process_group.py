"""Which device a process takes, and which precisions are refused on it: one that it would emulate, by every command that takes one."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

from eval.errors import UserError
from eval.process_group import launched_device, precision_fault, without_bf16
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


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch says that there is an Apple GPU."""
    for name in ("ACCELERATE_USE_CPU", "PYTORCH_ENABLE_MPS_FALLBACK"):
        monkeypatch.setenv(name, "")  # what is set meanwhile is undone
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.backends.mps.is_built", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("apple")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_leaves_an_apple_gpu_alone_and_says_so(
    small_world: SmallWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str], precision: str
) -> None:
    assert PartialState().default_device.type == "mps", "what accelerate would take"
    AcceleratorState._reset_state(reset_partial_state=True)
    train = load_config(small_world.write_config(tmp_path, train__precision=precision)).train
    accelerator, _ = distributed.start_distributed(train, lambda processes: None)
    assert accelerator.device == launched_device() == torch.device("cpu")
    assert capfd.readouterr().out.count("the Apple GPU (mps) lacks") == 1


@pytest.mark.usefixtures("apple")
def test_fp16_is_refused_there(small_world: SmallWorld, tmp_path: Path) -> None:
    train = load_config(small_world.write_config(tmp_path, train__precision="fp16")).train
    with pytest.raises(UserError, match="needs a CUDA GPU, and this run is on 'cpu'"):
        distributed.start_distributed(train, lambda processes: None)


def test_what_towers_do_not_embed_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert precision_fault("fp32", cpu) == precision_fault("bf16", cpu) == precision_fault("fp16", gpu) == ""
    assert "needs a CUDA GPU, and this is 'cpu'" in precision_fault("fp16", cpu)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    assert "Tesla T4 has no bfloat16 of its own" in precision_fault("bf16", gpu)

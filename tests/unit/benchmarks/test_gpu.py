"""benchmarks/gpu.py without a GPU: every part runs with a tiny model, one that fails leaves the rest, and the estimate says what it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.speed.flops import step_flops, tower_flops


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> gpu.Place:
    found = gpu.Place(tmp_path_factory.mktemp("gpu") / "place", torch.device("cpu"), gpu.TINY)
    gpu.prepare(found)
    return found


@pytest.mark.parametrize("name", [name for name in gpu.STEPS if "compile" not in gpu.STEPS[name]])
def test_steps_of_every_form_are_measured(place: gpu.Place, name: str) -> None:
    found = gpu.measure_steps(place, name)
    low, high = found["spread"]
    assert 0 < low <= found["seconds"] <= high and found["pairs_per_second"] == gpu.TINY.batch / found["seconds"]
    assert found["peak_gib"] is None


def test_the_other_parts_are_measured(place: gpu.Place) -> None:
    assert gpu.measure_equality(place)["largest_difference"] == 0, "this device is the CPU"
    refresh = gpu.measure_refresh(place)
    assert (refresh["images"], refresh["captions"]) == (24, 120) and refresh["num_mined"] > 0
    reranking = gpu.measure_reranking(place)
    assert reranking["pairs_per_second"].keys() == {"float32", "bfloat16"} and 0 < reranking["largest_difference"] < 0.2


ON_THE_PRETEND_GPU = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from benchmarks import gpu
from tests import pretend_gpu
place = gpu.Place(Path(sys.argv[1]), torch.device("cpu"), gpu.TINY)
gpu.STEPS = {"plain": {"precision": "fp32"}, "mined": {"precision": "fp32", "mined": 2}, "cached": {"precision": "fp32", "cached": True}}
with pretend_gpu.mode():
    place = replace(place, device=pretend_gpu.DEVICE)
    found = {name: gpu.measure_steps(place, name) for name in gpu.STEPS}
    print(json.dumps(found | {"equality": gpu.measure_equality(place), "refresh": gpu.measure_refresh(place)}))
"""


@pytest.mark.slow
def test_what_a_gpu_refuses_is_not_met(place: gpu.Place) -> None:
    """The parts that the pretend GPU covers, on it; in a process of its own, for torch keeps the device for good."""
    command = [sys.executable, "-c", ON_THE_PRETEND_GPU, str(place.folder)]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["equality"]["largest_difference"] < 1e-5 and "pgpu" in found["equality"]["losses"]
    assert found["refresh"]["num_mined"] > 0


def test_a_part_that_fails_or_takes_too_long_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--folder", str(tmp_path), "--device", "no-such-device"]
    assert gpu.run_part("plain-fp32", words, 60)["fault"].startswith("RuntimeError")
    assert gpu.run_part("plain-fp32", [], 0.01) == {"fault": "not done in its 0 s"}
    step = {"seconds": 0.5, "spread": [0.4, 0.6], "first": 1.0, "pairs_per_second": 16.0, "flops": 2e12, "peak_gib": 1.2}
    monkeypatch.setattr(gpu, "run_part", lambda name, *_: step if name == "plain-bf16" else {"fault": "it broke"})
    monkeypatch.setattr(gpu, "prepare", lambda place: None)
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--device", "cpu", "--output", str(tmp_path / "gpu.md")])
    assert gpu.main() == 1
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# On a GPU\n\n**CPU: a tiny model, batch 8, takes 16 pairs/s in bf16.**")
    assert "| plain-bf16 | 16 | 0.5000 (0.4000 to 0.6000) | 1.0 | 2.0 |  | 1.2 |" in page
    assert "- refresh was not measured: it broke." in page


def test_parts_are_told_their_time_and_do_not_exceed_ten_minutes() -> None:
    assert {*gpu.LIMITS} == {*gpu._ORDER} == {*gpu.STEPS, *gpu.PARTS} and gpu.TOTAL_SECONDS < 600


def test_operations_are_those_worked_out_by_hand() -> None:
    """SigLIP base: 12 layers of width 768 over 196 patches, or 64 tokens: 4 projections, 2 of the MLP, 2 products of attention, and the
    patches; the picture's pooling head attends with one probe."""
    width, found = 768, tower_flops()

    def layers(tokens: int) -> int:
        return 12 * (2 * tokens * (4 * width**2 + 8 * width**2) + 2 * 2 * tokens**2 * width)

    patches = 2 * 196 * width * 3 * 16**2
    pooling = 2 * (2 * 196 * width**2 + 2 * width**2 + 2 * 196 * width + 8 * width**2)
    head = 2 * width**2
    assert found["text"] == layers(64) + head
    assert found["image"] == layers(196) + patches + pooling
    assert step_flops(8) == 24 * (found["image"] + found["text"])


def test_the_estimate_says_that_it_is_one() -> None:
    first, lines = gpu.estimate()
    assert first.startswith("No GPU was at hand, so this is counted, not measured")
    text = "\n".join(lines)
    assert "| weights of SigLIP base at 224 pixels | 203.2 M |" in text and "assumed" in text

"""Out of memory: known before step 1, exit code 6 wherever it strikes, the key to change is named, and the run goes on with it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.engine.loop
import train.reranker.step
import train.siglip.step
from eval import __main__ as evaluation
from eval.command import run_evaluation
from eval.errors import is_out_of_memory
from tests.faults.runs import lines, said
from tests.nursery import ROOT
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from train.__main__ import run as run_train
from train.engine.loop import BaseLoop
from train.export.__main__ import main as export

DROPOUT = {"model__lora": {"rank": 2, "dropout": 0.5}, "mining__mined_scope": "all"}


def fail(*arguments: Any, **options: Any) -> Any:
    """What torch raises on a GPU that is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB")


@pytest.fixture
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU counts as a device with memory of its own, so that the largest step is tried."""
    monkeypatch.setattr(train.engine.loop, "has_own_memory", lambda device: True)


def test_what_counts_as_out_of_memory() -> None:
    for make in (lambda: torch.empty(1 << 60), lambda: np.empty(1 << 59), lambda: bytearray(1 << 60)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            make()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(28, "No space left on device"), ValueError("memory")):
        assert not is_out_of_memory(error)


def test_a_process_whose_memory_is_limited_ends_with_6() -> None:
    program = (
        "import resource, sys, torch; from eval.command import run_command; resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36)); "
        "sys.exit(run_command(lambda: torch.zeros(1 << 38).sum() and None, loads_models=False))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 6 and done.stderr.startswith("error: out of memory (") and "Traceback" not in done.stderr


@pytest.mark.parametrize("changes", [DROPOUT, {"model__freeze": ["text"], "train__micro_batch_size": 3}], ids=["lora", "frozen"])
def test_the_trial_of_the_largest_step_changes_no_bit(
    small_world: SmallWorld, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Nor does reading the next batch while the weights are updated."""
    plain, tried = (small_world.write_config(tmp_path / name, **changes) for name in ("plain", "tried"))
    assert run_train([str(plain)]) == 0
    request.getfixturevalue("own_memory")
    ahead, read = list[int](), BaseLoop._next_share

    def reading(self: Any, after: int = 0) -> Any:
        ahead.append(after)
        return read(self, after)

    monkeypatch.setattr(BaseLoop, "_next_share", reading)
    assert run_train([str(tried), "train.max_steps=9"]) == 0
    assert len(ahead) == 9 and sum(ahead) >= 3  # while weights are updated, but not past a mining
    folders = [path.parent / "runs" / "job" for path in (plain, tried)]
    assert said(folders[0]) == said(folders[1])
    exports = [(folder / "export" / "model.safetensors").read_bytes() for folder in folders]
    assert exports[0] == exports[1]


def test_the_step_that_is_tried_is_the_largest(
    reranker_world: RerankerWorld, own_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes through the towers in the trial, and in every step of the run."""
    sizes: dict[str, list[tuple[int, int]]] = {"tried": [], "taken": []}
    stepper = train.siglip.step.Stepper
    rehearse, take = stepper.rehearse, stepper.train_step

    def rehearsing(self: Any, batch: Any) -> None:
        sizes["tried"].append((batch.pixels_b.numel(), batch.token_ids_cL.numel() + batch.mined_token_ids_mL.numel()))
        rehearse(self, batch)

    def taking(self: Any, batch: Any, **options: Any) -> Any:
        sizes["taken"].append((batch.pixels_b.numel(), batch.token_ids_cL.numel() + batch.mined_token_ids_mL.numel()))
        return take(self, batch, **options)

    monkeypatch.setattr(stepper, "rehearse", rehearsing)
    monkeypatch.setattr(stepper, "train_step", taking)
    changes: dict[str, Any] = {"mining__distil": {"model": str(reranker_world.blip), "form": "lists"}, "train__max_steps": 3}
    changes |= {"mining__denoise": {"mode": "relabel", "model": str(reranker_world.blip), "threshold": 0.4}}
    world = SmallWorld(reranker_world.manifest, reranker_world.base)
    assert run_train([str(world.write_config(tmp_path, **changes))]) == 0
    (tried,) = sizes["tried"]
    assert tried == (8 * 3 * 16 * 16, 8 * (1 + 2 + 2) * 12)  # 8 images of 16 pixels; a caption, two mined, two relabelled, of 12 tokens
    assert len(sizes["taken"]) == 3 and all(taken[0] <= tried[0] and taken[1] <= tried[1] for taken in sizes["taken"])


def test_the_largest_pairs_of_a_reranker_are_tried(
    reranker_world: RerankerWorld, own_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[tuple[int, ...]]] = {"tried": [], "taken": []}
    stepper = train.reranker.step.MatchStepper
    rehearse, take = stepper.rehearse, stepper.train_step

    def size(batch: Any) -> tuple[int, ...]:
        return len(batch.pixels_p), *batch.token_ids_NL.shape

    def rehearsing(self: Any, batch: Any) -> None:
        sizes["tried"].append(size(batch))
        rehearse(self, batch)

    def taking(self: Any, batch: Any, **options: Any) -> Any:
        sizes["taken"].append(size(batch))
        return take(self, batch, **options)

    monkeypatch.setattr(stepper, "rehearse", rehearsing)
    monkeypatch.setattr(stepper, "train_step", taking)
    config = reranker_world.write_config(tmp_path, train__micro_batch_size=3)
    assert run_train([str(config)]) == 0
    assert sizes["tried"] == [(16, 32, 35)]  # an image and a hard one; a true caption, two hard ones, and the hard image's; 35 tokens
    assert len(sizes["taken"]) == 6 and all(np.all(np.array(taken) <= (16, 32, 35)) for taken in sizes["taken"])


def test_what_does_not_fit_is_known_before_step_1_and_the_run_goes_on_with_the_key(
    small_world: SmallWorld, own_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device on which 24 texts at once, of 8 captions and 16 mined ones, are too many."""
    embed = train.siglip.step.Towers._forward

    def limited(self: Any, tower: Any, rows: Any) -> Any:
        return embed(self, tower, rows) if len(rows) <= 8 else fail()

    monkeypatch.setattr(train.siglip.step.Towers, "_forward", limited)
    config = small_world.write_config(tmp_path)
    folder = tmp_path / "runs" / "job"
    for at in ([], ["train.checkpoint_every_steps=2"]):  # at every start
        assert run_train([str(config), *at]) == 6
    told = capsys.readouterr().err
    assert "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB." in told and "Traceback" not in told
    assert "a trial of the largest step of the run. Add train.micro_batch_size=4 (now 8) and model.gradient_checkpointing=true" in told
    assert [line["event"] for line in lines(folder)] == ["start"]
    assert run_train([str(config), "train.micro_batch_size=4", "model.gradient_checkpointing=true"]) == 0


PLACES = {
    "a step": ("train.siglip.step:Stepper._forward_backward", "Add train.micro_batch_size=4 (now 8)"),
    "an evaluation": ("eval.encoder.encoder:image_features", "--num-workers, data.num_workers"),
    "a mining": ("train.siglip.mining:mine", "take a smaller model or more memory"),
    "the export": ("train.siglip.export:plain_state", "take a smaller model or more memory"),
    "the reranking": ("rerank.scoring.pair_scores:_score_image", "take a smaller one (--rerank, rerank.model, mining.denoise.model)"),
}


@pytest.mark.parametrize("place", PLACES)
def test_out_of_memory_is_exit_6_wherever_it_strikes_and_the_run_goes_on(
    reranker_world: RerankerWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    target, remedy = PLACES[place]
    module, _, attribute = target.partition(":")
    world = SmallWorld(reranker_world.manifest, reranker_world.base)
    rerank = {"rerank__model": str(reranker_world.blip), "rerank__top_k": 3} if place == "the reranking" else {}
    config = world.write_config(tmp_path, train__max_steps=4, **rerank)
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{attribute}", fail)
        assert run_train([str(config)]) == 6
    told = capsys.readouterr().err
    assert "error: out of memory (CUDA out of memory." in told and remedy in told and "Traceback" not in told
    assert run_train([str(config)]) == 0


def test_the_commands_end_with_6_too(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_world.write_config(tmp_path, train__max_steps=2, mining=None)
    assert run_train([str(config)]) == 0
    monkeypatch.setattr("eval.encoder.encoder.text_features", fail)
    data = ["--data", str(small_world.manifest), "--split", "test", "--num-workers", "0"]
    asked = evaluation.parse(["--model", str(small_world.base), *data, "--output", str(tmp_path / "eval")])
    assert run_evaluation(lambda processes, device: evaluation.run(asked, processes, device), writes=[]) == 6
    monkeypatch.setattr("train.siglip.export.plain_state", fail)
    assert export([str(tmp_path / "runs" / "job"), "--output", str(tmp_path / "out")]) == 6
    assert "Traceback" not in capsys.readouterr().err

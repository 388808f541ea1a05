"""train/engine/checkpoint.py: what is committed is whole, what is not whole is not read, and nothing good is lost to a failure."""

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.atomic import sweep
from eval.encoder.sealed import seal, verify
from eval.errors import UserError, WriteError
from tests.small_job import SmallWorld
from train.config.job import TrainConfig
from train.config.model import ModelConfig
from train.engine.checkpoint import Checkpoints, HostMemory, NoReadableCheckpoint, State, Writer
from train.model.siglip import TunedModel, build_model, make_optimizer
from train.optim.ema import WeightAverage
from train.optim.loss_scale import LossScale

TRAIN = TrainConfig(max_steps=9, batch_size=8, learning_rate=1e-2, eval_every_steps=3, checkpoint_every_steps=3)


def state(step: int, **changes: object) -> State:
    whole = State(
        step=step, num_metrics_lines=10 * step, evaluated=True, best_step=0, best_score=0.25, base_sha256="base", data_sha256="data"
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.fixture
def tuned(small_world: SmallWorld) -> TunedModel:
    return build_model(ModelConfig(base=str(small_world.base), freeze=["image", "text"]), str(small_world.base))


@pytest.fixture
def optimizer(tuned: TunedModel) -> torch.optim.Optimizer:
    return make_optimizer(tuned, TRAIN)


def train_a_step(tuned: TunedModel, optimizer: torch.optim.Optimizer, gradient: float) -> None:
    for number, (_, parameter) in enumerate(tuned.trainable()):
        parameter.grad = torch.full_like(parameter, gradient + number)
    optimizer.step()


@pytest.fixture
def saved(tmp_path: Path, tuned: TunedModel, optimizer: torch.optim.Optimizer) -> Checkpoints:
    """Checkpoints of steps 0, 3 and 6."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (0, 3, 6):
        for _ in range(3 if step else 0):
            train_a_step(tuned, optimizer, 1.0)
        checkpoints.save(state(step), tuned, optimizer, None)
    return checkpoints


def test_weights_and_moments_come_back_bit_for_bit(
    saved: Checkpoints, small_world: SmallWorld, tuned: TunedModel, optimizer: torch.optim.Optimizer
) -> None:
    fresh = build_model(ModelConfig(base=str(small_world.base), freeze=["image", "text"]), str(small_world.base))
    other = make_optimizer(fresh, TRAIN)
    saved.load_weights(6, fresh)
    saved.load_optimizer(6, fresh, other)
    for gradient in (0.5, -2.0):  # the same steps from here lead to the same bits only if every moment and the step count are there
        train_a_step(tuned, optimizer, gradient)
        train_a_step(fresh, other, gradient)
        assert all(torch.equal(one, two) for (_, one), (_, two) in zip(tuned.trainable(), fresh.trainable(), strict=True))
    assert saved.state(6) == state(6)


def averages_of(average: WeightAverage) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in average.named()}


def test_averages_come_back_bit_for_bit_and_are_what_is_exported(
    tmp_path: Path, small_world: SmallWorld, tuned: TunedModel, optimizer: torch.optim.Optimizer
) -> None:
    checkpoints, average = Checkpoints(tmp_path / "checkpoints"), WeightAverage(tuned, 0.99)
    for _ in range(3):
        train_a_step(tuned, optimizer, 1.0)
        average.update()
    checkpoints.save(state(3), tuned, optimizer, None, average=average)
    weights = {name: parameter.detach().clone() for name, parameter in tuned.trainable()}
    fresh = build_model(ModelConfig(base=str(small_world.base), freeze=["image", "text"]), str(small_world.base))
    other, again = make_optimizer(fresh, TRAIN), WeightAverage(fresh, 0.99)
    checkpoints.load_weights(3, fresh)
    checkpoints.load_optimizer(3, fresh, other)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in fresh.trainable())
    checkpoints.load_average(3, again)
    for _ in range(2):  # the same factors from here only if the number of updates is there
        assert again.num_updates == average.num_updates
        assert all(torch.equal(tensor, averages_of(average)[name]) for name, tensor in again.named())
        for one, two, three in ((tuned, optimizer, average), (fresh, other, again)):
            train_a_step(one, two, -2.0)
            three.update()
    checkpoints.load_evaluated(3, fresh)
    saved = load_file(checkpoints.path(3) / "average.safetensors")
    assert all(torch.equal(parameter, saved[name]) and not torch.equal(parameter, weights[name]) for name, parameter in fresh.trainable())
    (checkpoints.path(3) / "average.safetensors").write_bytes(b"")
    assert "average.safetensors" in verify(checkpoints.path(3))


def test_a_checkpoint_without_averages_has_none_to_go_on_with(
    saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer
) -> None:
    average = WeightAverage(tuned, 0.99)
    with pytest.raises(UserError, match="step-6 has no averages of its weights.*Give train.ema_decay=null, or take another name="):
        saved.load_average(6, average)
    saved.load_weights(6, tuned)
    weights = {name: parameter.detach().clone() for name, parameter in tuned.trainable()}
    train_a_step(tuned, optimizer, 1.0)
    saved.load_evaluated(6, tuned)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in tuned.trainable())


def test_steps_that_fp16_skipped_and_those_of_another_run_are_no_updates_of_the_average() -> None:
    skipped = state(9, num_updates_before=100, loss_scale=LossScale(scale=2.0, num_skipped=4))
    assert (skipped.num_own_updates, skipped.num_updates) == (5, 105)
    assert (state(9).num_own_updates, state(9).num_updates) == (9, 9)


def test_every_kind_of_damage_is_seen(saved: Checkpoints) -> None:
    folder = saved.path(6)
    assert verify(folder) == ""
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors"]
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            for bit in (1, 128):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
                assert verify(folder) != "", (name, place, bit)
        for length in (0, 1, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:length])
            assert verify(folder) != "", (name, length)
        path.unlink()
        assert verify(folder) != "", name
        path.write_bytes(whole)
    assert verify(folder) == ""


def test_the_newest_whole_one_is_taken_with_a_warning(saved: Checkpoints) -> None:
    assert saved.newest() == (state(6), [])
    (saved.path(6) / "weights.safetensors").write_bytes(b"")
    found = saved.newest()
    assert found is not None and found[0] == state(3) and len(found[1]) == 1 and "step-6 is damaged and was skipped" in found[1][0]


def test_when_none_is_whole_nothing_is_guessed(saved: Checkpoints, tmp_path: Path) -> None:
    for step in (0, 3, 6):
        (saved.path(step) / "state.json").unlink()
    with pytest.raises(NoReadableCheckpoint, match="step-6(.|\n)*step-3(.|\n)*step-0(.|\n)*Move .* away") as caught:
        saved.newest()
    assert caught.value.exit_code == 3
    assert Checkpoints(tmp_path / "nothing").newest() is None


def test_a_state_of_another_version_counts_as_damaged(saved: Checkpoints) -> None:
    folder = saved.path(6)
    record = json.loads((folder / "state.json").read_text())
    del record["best_step"]
    (folder / "state.json").write_text(json.dumps(record))
    seal(folder)
    assert verify(folder) == ""
    found = saved.newest()
    assert found is not None and found[0].step == 3


def test_prune_keeps_the_newest_and_the_best(saved: Checkpoints) -> None:
    saved.prune(1, best_step=0)
    assert saved.steps() == [0, 6]
    saved.prune(1, best_step=None)
    assert saved.steps() == [6]


def test_damaged_checkpoints_do_not_push_out_the_whole_one(saved: Checkpoints) -> None:
    (saved.path(6) / "weights.safetensors").write_bytes(b"")
    found = saved.newest()
    assert found is not None
    saved.discard_after(found[0].step)
    saved.prune(1, best_step=None)
    assert saved.steps() == [3] and verify(saved.path(3)) == ""


def test_the_same_state_is_not_written_twice(saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer) -> None:
    before = (saved.path(6) / "manifest.json").stat().st_ino
    saved.save(state(6), tuned, optimizer, None)
    assert (saved.path(6) / "manifest.json").stat().st_ino == before


def test_what_was_learnt_since_is_written(saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer) -> None:
    """A run stopped before the evaluation of its last step learns afterwards that this step is the best one."""
    saved.save(state(6, best_step=6, best_score=0.5), tuned, optimizer, None)
    found = saved.newest()
    assert found is not None and found[0].best_step == 6
    assert sorted(path.name for path in saved.folder.iterdir()) == ["step-0", "step-3", "step-6"]


def test_what_is_learnt_of_a_step_costs_no_second_writing_of_its_tensors(
    saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("weights.safetensors", "optimizer.safetensors")
    before = [(saved.path(6) / name).stat().st_ino for name in names]
    saved.save(state(6, best_step=6), tuned, optimizer, None)
    assert [(saved.path(6) / name).stat().st_ino for name in names] == before

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)  # a file system without
    saved.save(state(6, best_step=3), tuned, optimizer, None)
    assert all((saved.path(6) / name).stat().st_ino != inode for name, inode in zip(names, before, strict=True))
    assert verify(saved.path(6)) == "" and saved.state(6).best_step == 3


def test_a_damaged_one_of_the_same_step_is_replaced(saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer) -> None:
    (saved.path(6) / "optimizer.safetensors").write_bytes(b"")
    saved.save(state(6), tuned, optimizer, None)
    assert verify(saved.path(6)) == "" and saved.steps() == [0, 3, 6]


@pytest.mark.parametrize("failing", ["train.engine.checkpoint.save_file", "train.engine.checkpoint.seal", "eval.atomic.sync"])
def test_a_write_that_fails_leaves_the_old_ones_and_no_litter(
    saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*arguments: object) -> None:
        if failing != "eval.atomic.sync" or arguments == (saved.folder,):  # after the renaming
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="No space"):
        saved.save(state(9), tuned, optimizer, None)
    assert [path for path in saved.folder.iterdir() if not path.name.startswith("step-")] == []
    assert all(verify(saved.path(step)) == "" for step in (0, 3, 6))


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path, tuned: TunedModel, optimizer: torch.optim.Optimizer) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        Checkpoints(tmp_path / "checkpoints").save(state(0), tuned, optimizer, None)


def test_sweep_removes_leftovers_and_brings_back_what_was_being_replaced(saved: Checkpoints) -> None:
    shutil.copytree(saved.path(3), saved.folder / ".step-9.123.tmp")
    shutil.copytree(saved.path(3), saved.folder / ".step-3.124.old")
    os.rename(saved.path(6), saved.folder / ".step-6.125.old")
    shutil.copytree(saved.path(3), saved.folder / ".tmp-9-123")  # as the first version called them
    os.rename(saved.path(0), saved.folder / ".retired-step-0")
    sweep(saved.folder, is_alone=True)
    assert sorted(path.name for path in saved.folder.iterdir()) == ["step-0", "step-3", "step-6"]
    assert verify(saved.path(6)) == ""


def test_negatives_travel_with_the_checkpoint(
    saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    table = tmp_path / "abc.parquet"
    table.write_bytes(b"a table")
    saved.save(state(9, negatives="abc"), tuned, optimizer, table)
    assert (saved.path(9) / "negatives.parquet").read_bytes() == b"a table"
    (saved.path(9) / "negatives.parquet").write_bytes(b"another")
    assert "negatives.parquet" in verify(saved.path(9))


def test_weights_of_another_model_are_refused(saved: Checkpoints, small_world: SmallWorld) -> None:
    full = build_model(ModelConfig(base=str(small_world.base)), str(small_world.base))
    with pytest.raises(NoReadableCheckpoint, match="weights of another model"):
        saved.load_weights(6, full)


def test_what_was_gathered_is_written_though_training_goes_on(
    saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer
) -> None:
    average, memory = WeightAverage(tuned, 0.5), HostMemory()
    for step in (9, 12):  # the second into the memory of the first
        saved.save(state(step), tuned, optimizer, None, average=average)
        gathered = saved.gather(state(step + 1), tuned, optimizer, None, average=average, memory=memory)
        assert gathered is not None and gathered.is_copy
        train_a_step(tuned, optimizer, 2.0)
        average.update()
        saved.commit(gathered)
        for name in ("weights", "optimizer", "average"):
            files = [(saved.path(number) / f"{name}.safetensors").read_bytes() for number in (step, step + 1)]
            assert files[0] == files[1], name


def test_without_room_for_a_copy_there_is_none(
    saved: Checkpoints, tuned: TunedModel, optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Limits of a container of each version of cgroups: 1,000,000 bytes in use, some of which can be had again."""
    monkeypatch.setattr("train.engine.checkpoint._CGROUP", tmp_path)
    num_bytes = sum(3 * parameter.nbytes for _, parameter in tuned.trainable())
    for folder, limit, used, name in (
        (tmp_path, "memory.max", "memory.current", "inactive_file"),
        (tmp_path / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / used).write_text("1000000\n")
        (folder / "memory.stat").write_text(f"anon 5\n{name} 400000\n")
        for free, fits in ((num_bytes, False), (2 * num_bytes, True)):
            (folder / limit).write_text(f"{600000 + free}\n")
            gathered = saved.gather(state(9), tuned, optimizer, None, memory=HostMemory())
            assert gathered is not None and gathered.is_copy == fits, (limit, free)
        (folder / limit).write_text("max\n")


def test_one_is_written_at_a_time_and_its_error_is_the_next_ones() -> None:
    failed, may_end, began = list[bool](), threading.Event(), list[int]()
    writer = Writer(lambda: failed.append(True))

    def write(number: int) -> None:
        began.append(number)
        assert may_end.wait(60)
        if number == 1:
            raise OSError(28, "No space left on device")

    writer.start(lambda: write(0))
    second = threading.Thread(target=lambda: writer.start(lambda: write(1)))
    second.start()
    second.join(0.1)
    assert second.is_alive() and began == [0]
    may_end.set()
    second.join()
    with pytest.raises(WriteError, match="could not write a checkpoint: .*No space"):
        writer.start(lambda: write(2))
    assert failed == [True] and began == [0, 1]
    writer.wait()  # raised once
    writer.start(lambda: write(1))
    assert isinstance(writer.close(), OSError) and writer.close() is None


def test_a_worker_does_not_inherit_a_file_that_is_being_written(saved: Checkpoints) -> None:
    """Its room would stay taken on the disk after the checkpoint is removed."""
    aside = saved.folder / ".step-9.0123abcd.tmp"
    aside.mkdir()
    with (aside / "weights.safetensors").open("wb") as writing, (saved.path(6) / "state.json").open("rb") as other:
        child = os.fork()
        if not child:
            is_open = [Path(f"/proc/self/fd/{file.fileno()}").exists() for file in (writing, other)]
            os._exit(0 if is_open == [False, True] else 1)
        assert os.waitpid(child, 0)[1] == 0
        writing.write(b"still open here")

"""train/optim/loss_scale.py and its use in train/siglip/step.py: torch's own rule; scaling changes no bit; an overflow skips a step."""

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.processes import Processes
from tests.nursery import Nursery
from tests.small_job import SmallWorld, load
from train.__main__ import run
from train.config.job import JobConfig
from train.data.batches import Batch, BatchBuilder
from train.data.caption_pool import CaptionPool
from train.data.order import BatchOrder
from train.engine import distributed as machine
from train.engine.checkpoint import Checkpoints, State
from train.model.siglip import TunedModel, build_model, make_optimizer
from train.optim import loss_scale
from train.optim.loss_scale import LossScale
from train.optim.update import NotFinite
from train.siglip.step import Stepper


@settings(deadline=None, max_examples=25)
@given(st.lists(st.booleans(), max_size=12))
def test_the_rule_is_grad_scalers(overflows: list[bool]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "GROWTH_INTERVAL_STEPS", 3)
        weight = torch.nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([weight], lr=0.0)
        theirs, ours = torch.amp.GradScaler("cpu", growth_interval=3), LossScale()
        for overflowed in overflows:
            theirs.scale(torch.zeros(()))
            weight.grad = torch.tensor([1.0, math.inf if overflowed else 1.0])
            theirs.unscale_(optimizer)
            theirs.step(optimizer)
            theirs.update()
            ours = ours.after(overflowed=overflowed)
            assert (ours.scale, ours.num_good_steps) == (theirs.get_scale(), theirs._get_growth_tracker())
        assert ours.num_skipped == sum(overflows)
    assert theirs.get_scale() == ours.scale and torch.amp.GradScaler("cpu").get_growth_interval() == loss_scale.GROWTH_INTERVAL_STEPS


class Bench:
    """A small model and its stepper, on the CPU without autocast: the arithmetic is float32, the scaling fp16's."""

    def __init__(self, world: SmallWorld, precision: str) -> None:
        record = world.record(Path("nowhere"), train__precision=precision, mining=None)
        self.config, self.dataset = JobConfig.model_validate(record), load(world.manifest)
        self.tuned: TunedModel = build_model(self.config.model, str(world.base))
        self.optimizer = make_optimizer(self.tuned, self.config.train)
        order = BatchOrder(self.dataset.num_images, self.config.train.batch_size, self.config.seed)
        self._batches = BatchBuilder(CaptionPool(self.dataset), self.tuned.inputs, order, Processes())
        self.stepper = Stepper(self.config, self.tuned, self.optimizer, self.dataset, Processes(), contextlib.nullcontext)

    def batch(self, step: int) -> Batch:
        return self._batches[step]

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for _, parameter in self.tuned.trainable()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_scaling_by_a_power_of_two_changes_no_bit_of_loss_norm_or_weights(small_world: SmallWorld) -> None:
    plain, scaled = Bench(small_world, "fp32"), Bench(small_world, "fp16")
    assert plain.stepper.update.loss_scale is None and scaled.stepper.update.loss_scale == LossScale(65536.0)
    for step in (1, 2, 3):
        assert plain.stepper.train_step(plain.batch(step)) == scaled.stepper.train_step(scaled.batch(step))
    assert same(plain.weights(), scaled.weights())
    assert scaled.stepper.update.loss_scale == LossScale(65536.0, 3, 0)


def test_what_overflows_is_skipped_and_counted_until_the_scale_is_small_enough(small_world: SmallWorld) -> None:
    bench, plain = Bench(small_world, "fp16"), Bench(small_world, "fp32")
    bench.stepper.update.loss_scale = LossScale(2.0**127)  # a loss of about 10 times this is not a float32
    before, step = bench.weights(), 0
    while True:
        step += 1
        result = bench.stepper.train_step(bench.batch(step))
        if not result.skipped:
            break
        assert math.isfinite(result.loss) and same(before, bench.weights()) and not bench.optimizer.state
    assert step > 2 and bench.stepper.update.loss_scale == LossScale(2.0 ** (127 - (step - 1)), 1, step - 1)
    assert result == plain.stepper.train_step(plain.batch(step)) and same(bench.weights(), plain.weights())


def test_weights_that_are_not_numbers_end_the_run_in_fp16_too(small_world: SmallWorld) -> None:
    bench = Bench(small_world, "fp16")
    with torch.no_grad():
        next(bench.tuned.siglip.parameters())[...] = math.nan
    bench.stepper.update.loss_scale = LossScale(2.0)
    assert bench.stepper.train_step(bench.batch(1)).skipped
    with pytest.raises(NotFinite, match="weights not finite already"):
        bench.stepper.train_step(bench.batch(2))


def test_a_resumed_run_continues_with_scale_optimizer_state_and_the_number_of_updates(small_world: SmallWorld, tmp_path: Path) -> None:
    """Steps 1 and 2 are skipped: AdamW's own count is two behind the step's when the checkpoint is written."""
    bench, again = Bench(small_world, "fp16"), Bench(small_world, "fp16")
    bench.stepper.update.loss_scale = LossScale(2.0**127)
    results = [bench.stepper.train_step(bench.batch(step)) for step in range(1, 11)]
    num_skipped = sum(result.skipped for result in results)
    assert 2 <= num_skipped <= 8
    checkpoints = Checkpoints(tmp_path)
    state = State(step=10, base_sha256="base", data_sha256="data", loss_scale=bench.stepper.update.loss_scale)
    checkpoints.save(state, bench.tuned, bench.optimizer, None)
    found = checkpoints.newest()
    assert found is not None and found[0] == state and state.num_updates == 10 - num_skipped
    checkpoints.load_weights(10, again.tuned)
    checkpoints.load_optimizer(10, again.tuned, again.optimizer)
    again.stepper.update.loss_scale = found[0].loss_scale
    for step in (11, 12):
        assert bench.stepper.train_step(bench.batch(step)) == again.stepper.train_step(again.batch(step))
    assert same(bench.weights(), again.weights()) and again.stepper.update.loss_scale == bench.stepper.update.loss_scale


def test_a_checkpoint_in_which_every_step_was_skipped_is_read(small_world: SmallWorld, tmp_path: Path) -> None:
    bench = Bench(small_world, "fp16")
    state = State(step=1, base_sha256="base", data_sha256="data", loss_scale=LossScale(2.0**15, 0, 1))
    Checkpoints(tmp_path).save(state, bench.tuned, bench.optimizer, None)
    Checkpoints(tmp_path).load_optimizer(1, bench.tuned, bench.optimizer)
    assert not bench.optimizer.state


def test_every_process_skips_when_one_overflows(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    children = nursery.start_ranks("tests.unit.train.optim.overflow", [str(small_world.manifest), str(small_world.base), str(tmp_path)], 2)
    assert [child.wait() for child in children] == [0, 0], children[0].output() + children[1].output()
    one, other = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert one == other and one[0] == "True 32768.0 1" and one[1] == "False 32768.0 1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_fp16_is_refused_on_a_cpu_with_the_reason(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    config = small_world.write_config(tmp_path, train__precision="fp16")
    child = nursery.start("train", [str(config)])
    assert child.wait() == 2 and "train.precision fp16 needs a CUDA GPU" in child.output() and "bf16 or fp32" in child.output()
    assert not (tmp_path / "runs" / "job" / "checkpoints").exists()


def test_a_run_killed_before_its_first_step_resumes_with_the_scale_it_began_with(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop with a device that claims to be a GPU; autocast stays off."""
    plain = machine.Accelerator
    monkeypatch.setattr(machine, "PartialState", lambda **_: SimpleNamespace(device=SimpleNamespace(type="cuda")))
    monkeypatch.setattr(machine, "Accelerator", lambda mixed_precision, **keys: plain(mixed_precision="no", cpu=True, **keys))
    changes = {"train__precision": "fp16", "train__max_steps": 3, "train__checkpoint_every_steps": 100, "mining": None}
    config = small_world.write_config(tmp_path, **changes)
    with monkeypatch.context() as trap:
        trap.setattr("train.siglip.loop.Loop._step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run([str(config)]) == 130
    assert run([str(config)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "runs" / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss_scale"] for line in lines if line["event"] == "step"] == [LossScale().scale] * 3

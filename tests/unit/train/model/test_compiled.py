"""train/model/compiled.py: compiled towers take the steps of uncompiled ones, at shapes that are all compiled before step 1."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError
from eval.processes import Processes
from tests.small_job import SmallWorld, load
from tests.unit.train.model.test_grad_cache import MICRO, SIZE, distance, first_batch, make_job
from train.config.job import JobConfig
from train.data.batches import BatchBuilder
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.data.order import BatchOrder
from train.model.compiled import CompiledTowers, Pass, passes_of, require_compiler
from train.model.grad_cache import Towers, _sides
from train.model.siglip import TunedModel, make_optimizer
from train.siglip.step import Stepper

MINED = 2
"""Of each image, at most."""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test compiles anew."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def stepper_of(
    world: SmallWorld,
    micro_batch_size: int | None,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    *,
    backend: str | None,
    double: bool = False,
    **model: Any,
) -> tuple[JobConfig, TunedModel, Stepper]:
    """backend: torch.compile's; None: not compiled."""
    config, tuned = make_job(world, micro_batch_size, **model)
    if double:
        tuned.siglip.double()
    stepper = Stepper(config, tuned, make_optimizer(tuned, config.train), load(world.manifest), Processes(), autocast)
    if backend is not None:
        compiled = CompiledTowers(tuned, passes_of(config, 1), backend)
        stepper._towers = Towers(tuned, micro_batch_size, (config.seed, 0), autocast, compiled)
    return config, tuned, stepper


def gradients(world: SmallWorld, *arguments: Any, **keys: Any) -> dict[str, torch.Tensor]:
    _, tuned, stepper = stepper_of(world, *arguments, **keys)
    result = stepper.train_step(first_batch(world, tuned))
    found = {name: value.grad.double() for name, value in tuned.trainable() if value.grad is not None}
    assert len(found) == len(list(tuned.trainable())) and result.num_mined == MINED * SIZE
    return found | {"loss": torch.tensor(result.loss, dtype=torch.float64)}


def test_the_passes_of_a_job(small_world: SmallWorld) -> None:
    """8 images and as many captions, at most 2 mined ones of each: 24 texts."""

    def found(world_size: int = 1, **changes: Any) -> list[tuple[Any, ...]]:
        passes = passes_of(JobConfig.model_validate(small_world.record(small_world.base.parent, **changes)), world_size)
        return [(one.tower, one.num_rows, one.has_graph) for one in passes]

    assert found() == [("image", 8, True), ("text", 8, True), ("text", 24, True)]
    assert found(2) == [("image", 4, True), ("text", 4, True), ("text", 12, True)]
    assert found(mining=None) == [("image", 8, True), ("text", 8, True)]
    assert found(train__captions_per_image=2) == [("image", 8, True), ("text", 16, True), ("text", 32, True)]
    assert found(train__micro_batch_size=8) == [("image", 8, True), ("text", 8, False), ("text", 8, True)]
    assert found(train__micro_batch_size=4)[:2] == [("image", 4, False), ("image", 4, True)]
    assert found(model__freeze=["text"]) == [("image", 8, True)]
    run_anew = {"model__freeze": ["text"], "model__cache_frozen": False}
    assert found(train__micro_batch_size=4, **run_anew)[2:] == [("text", 4, False)]
    assert found(train__micro_batch_size=8, **run_anew)[1:] == [("text", 8, False), ("text", 8, True)]


def test_a_step_is_that_of_uncompiled_towers(small_world: SmallWorld) -> None:
    """Filled up, in cached micro-batches."""
    found, expected = (gradients(small_world, MICRO, backend=backend, double=True) for backend in ("eager", None))
    assert distance(found, expected) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [None, MICRO])
@pytest.mark.parametrize(
    "model", [{}, {"freeze": ["image"], "cache_frozen": False}, {"gradient_checkpointing": True}, {"lora": {"rank": 2}}], ids=str
)
def test_with_autograd_traced_too_in_every_way_to_train(
    small_world: SmallWorld, micro_batch_size: int | None, model: dict[str, Any]
) -> None:
    found, expected = (gradients(small_world, micro_batch_size, backend=backend, double=True, **model) for backend in ("aot_eager", None))
    assert distance(found, expected) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_dropout_is_the_same_in_both_passes_of_micro_batches(small_world: SmallWorld, backend: str) -> None:
    """The embeddings of the first pass, without a graph, and of the second, with one."""
    _, tuned, stepper = stepper_of(small_world, MICRO, backend=backend, double=True, lora={"rank": 2, "dropout": 0.3})
    batch, towers = first_batch(small_world, tuned), stepper._towers
    towers.begin(batch.step)
    images_bD, texts_nD = towers.embed(batch)
    for side, first_ND in zip(_sides(batch), (images_bD, texts_nD), strict=True):
        parts = towers._micro_batches(side, batch.step, MICRO)
        second_ND = torch.cat([towers._forward(side.tower, side.rows[part]) for part in parts])
        torch.testing.assert_close(second_ND, first_ND, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_under_bf16_autocast_it_is_too_to_its_rounding(small_world: SmallWorld) -> None:
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    found, plain = (gradients(small_world, None, autocast, backend=backend) for backend in ("aot_eager", None))
    exact = gradients(small_world, None, backend=None)
    assert distance(found, plain) < 0.02 and distance(found, exact) < 2 * distance(plain, exact)


def test_what_rows_are_filled_up_with_gets_no_gradient_and_changes_none(small_world: SmallWorld) -> None:
    """Captions alone, filled up to as many texts as there can be."""
    config, tuned, stepper = stepper_of(small_world, None, backend=None)
    compiled = CompiledTowers(tuned, [Pass("text", 3 * SIZE, has_graph=True)], "eager")
    seen = []

    def spy(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        output.pooler_output.register_hook(seen.append)

    batch = first_batch(small_world, tuned)
    towers = Towers(tuned, None, (config.seed, 0), contextlib.nullcontext, compiled)
    rows = compiled.filled("text", batch.token_ids_cL)
    assert len(rows) == 3 * SIZE and torch.equal(rows[:SIZE], batch.token_ids_cL)
    handle = tuned.siglip.text_model.register_forward_hook(spy)
    (towers._forward("text", batch.token_ids_cL) * torch.arange(1.0, SIZE + 1)[:, None]).sum().backward()
    handle.remove()
    assert len(seen[0]) == 3 * SIZE and not seen[0][SIZE:].any() and seen[0][:SIZE].any(dim=1).all()


def table(dataset: Any, draws: np.random.Generator) -> Negatives:
    """None, one or two mined captions of each image."""
    counts = draws.integers(MINED + 1, size=dataset.num_images)
    first = np.asarray(dataset.caption_offsets)[:-1]
    mined = [(first[image] + 40 + np.arange(count)) % dataset.num_captions for image, count in enumerate(counts)]
    captions = np.concatenate(mined).astype(np.int64)
    zeros = np.zeros(len(captions), np.float32)
    return Negatives("made", np.concatenate([[0], np.cumsum(counts)]), captions, np.ones(len(captions), np.int64), zeros, zeros)


@pytest.mark.parametrize("micro_batch_size", [None, pytest.param(MICRO, marks=pytest.mark.slow)])
def test_nothing_is_compiled_again_in_50_steps_with_mining_and_evaluation(small_world: SmallWorld, micro_batch_size: int | None) -> None:
    config, tuned, stepper = stepper_of(small_world, micro_batch_size, backend="eager")
    dataset, draws = load(small_world.manifest), np.random.default_rng(0)
    num_texts = set()
    for step in range(1, 51):
        if step == 1 or step % 5 == 0:  # a mining: a table, after both towers were run over the split
            negatives = None if step == 1 else table(dataset, draws)
            builder = BatchBuilder(CaptionPool(dataset), tuned.inputs, BatchOrder(40, SIZE, 3), Processes(), negatives=negatives)
            embed_images(tuned.siglip, tuned.inputs, dataset)
            embed_captions(tuned.siglip, tuned.inputs, dataset.captions)
        batch = builder[step]
        num_texts.add(len(batch.captions_c) + len(batch.mined_captions_m))
        stepper.train_step(batch)
        torch.compiler.set_stance("fail_on_recompile")
    assert len(num_texts) > 10
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(passes_of(config, 1))


def test_names_of_weights_stay(small_world: SmallWorld) -> None:
    _, tuned, _ = stepper_of(small_world, None, backend="eager")
    assert not [name for name in tuned.siglip.state_dict() if "orig_mod" in name]


def test_without_a_compiler_the_job_is_refused() -> None:
    message = r"C\+\+ compiler.*train.compile=false"
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(UserError, match=message):
        require_compiler(torch.device("cpu"))

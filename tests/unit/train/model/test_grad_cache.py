"""train/model/grad_cache.py: cached micro-batches give the gradients of plain autograd, over the same dropout masks, in every way to
train."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from eval.encoder.encoder import image_features, text_features
from eval.processes import Processes
from tests.small_job import SmallWorld, load
from train.config.job import JobConfig
from train.data.batches import Batch, BatchBuilder, TruePairs
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.data.order import BatchOrder
from train.loss.distillation import OwnPairs
from train.loss.sigmoid import Pairing, sigmoid_loss
from train.model.grad_cache import Towers, cached_size
from train.model.siglip import TunedModel, build_model, make_optimizer
from train.optim.loss_scale import LossScale
from train.siglip.step import Stepper

SIZE, MICRO = 14, 5  # 5 + 5 + 4 images; 14 captions and 28 mined ones are 42 texts


def make_job(world: SmallWorld, micro_batch_size: int | None, **model: Any) -> tuple[JobConfig, TunedModel]:
    dropout = model.pop("dropout", 0.0)
    record = world.record(world.base.parent, train__batch_size=SIZE, train__micro_batch_size=micro_batch_size, train__max_grad_norm=None)
    record["model"] |= model
    config = JobConfig.model_validate(record)
    tuned = build_model(config.model, str(world.base), 3)
    draws = torch.Generator().manual_seed(3)
    for name, value in tuned.siglip.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value, std=0.1, generator=draws)
    for module in tuned.siglip.modules():  # 0 in SigLIP's released configurations
        if hasattr(module, "is_causal") and hasattr(module, "dropout"):
            module.dropout = dropout
    return config, tuned


def first_batch(world: SmallWorld, tuned: TunedModel) -> Batch:
    """Two mined captions an image, none of them its own."""
    dataset = load(world.manifest)
    captions = np.array([(int(dataset.caption_offsets[i]) + 40 + k) % dataset.num_captions for i in range(40) for k in (0, 1)])
    negatives = Negatives("made", np.arange(41) * 2, captions, np.ones(80, np.int64), *(np.zeros(80, np.float32),) * 2)
    return BatchBuilder(CaptionPool(dataset), tuned.inputs, BatchOrder(40, SIZE, 3), Processes(), negatives=negatives)[1]


def step_gradients(
    world: SmallWorld,
    micro_batch_size: int | None,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    *,
    loss_scale: float | None = None,
    double: bool = True,
    **model: Any,
) -> dict[str, torch.Tensor]:
    config, tuned = make_job(world, micro_batch_size, **model)
    if double:
        tuned.siglip.double()
    stepper = Stepper(config, tuned, make_optimizer(tuned, config.train), load(world.manifest), Processes(), autocast)
    stepper.update.loss_scale = None if loss_scale is None else LossScale(scale=loss_scale)
    result = stepper.train_step(first_batch(world, tuned))
    gradients = {name: value.grad.double() for name, value in tuned.trainable() if value.grad is not None}
    assert len(gradients) == len(list(tuned.trainable())) and result.num_mined == 2 * SIZE
    return gradients | {"loss": torch.tensor(result.loss, dtype=torch.float64)}


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    norm = torch.linalg.vector_norm(torch.cat([value.reshape(-1) for value in expected.values()]))
    return float(max(torch.linalg.vector_norm(found[name] - expected[name]) for name in expected) / norm)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"freeze": ["image"]},
        {"freeze": ["text"]},
        {"gradient_checkpointing": True},
        {"lora": {"rank": 2}},
        {"freeze": ["image", "text"]},
    ],
    ids=str,
)
def test_cached_micro_batches_are_the_plain_step(small_world: SmallWorld, model: dict[str, Any]) -> None:
    assert distance(step_gradients(small_world, MICRO, **model), step_gradients(small_world, None, **model)) < 1e-10


def test_under_fp16s_loss_scale_they_are_the_same(small_world: SmallWorld) -> None:
    plain = step_gradients(small_world, None)
    assert distance(step_gradients(small_world, MICRO, loss_scale=1024.0), plain) < 1e-10
    assert distance(step_gradients(small_world, None, loss_scale=1024.0), plain) < 1e-10


@pytest.mark.parametrize("model", [{}, {"lora": {"rank": 2}}], ids=str)
def test_under_bf16_autocast_they_are_the_same_to_its_rounding(small_world: SmallWorld, model: dict[str, Any]) -> None:
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    cached, plain = (step_gradients(small_world, size, autocast, double=False, **model) for size in (MICRO, None))
    exact = step_gradients(small_world, None, **model)
    assert distance(cached, plain) < 0.02 < 1
    assert distance(cached, exact) < 2 * distance(plain, exact)


def seeded(*keys: int) -> None:
    """The seed the module promises."""
    torch.manual_seed(int(np.random.SeedSequence(list(keys)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


@pytest.mark.parametrize("model", [{"lora": {"rank": 2, "dropout": 0.3}}, {"dropout": 0.3}], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_dropout_they_are_plain_autograd_over_the_same_masks(
    small_world: SmallWorld, model: dict[str, Any], checkpointing: bool
) -> None:
    model = model | {"gradient_checkpointing": checkpointing}
    cached = step_gradients(small_world, MICRO, **model)
    config, tuned = make_job(small_world, None, **model)
    tuned.siglip.double().train()
    batch, dataset = first_batch(small_world, tuned), load(small_world.manifest)
    parts = []
    for tower, features, rows in (
        (0, image_features, batch.pixels_b.double()),
        (1, text_features, torch.cat([batch.token_ids_cL, batch.mined_token_ids_mL])),
    ):
        embedded = []
        for number, start in enumerate(range(0, len(rows), MICRO), 1):
            seeded(config.seed, 1, 0, tower, number)
            embedded.append(features(tuned.siglip, rows[start : start + MICRO]))
        parts.append(torch.cat(embedded))
    positives = TruePairs(CaptionPool(dataset)).of_batch(batch.images_b.numpy(), [batch.captions_c.numpy()])
    pairing = Pairing(positives, (SIZE,), SIZE, OwnPairs(batch.mined_rows_m, torch.zeros(len(batch.mined_rows_m), dtype=torch.bool)), 0.5)
    loss = sigmoid_loss(*parts, *tuned.scale_and_bias(), pairing).total
    loss.backward()
    plain = {name: value.grad for name, value in tuned.trainable() if value.grad is not None} | {"loss": loss.detach()}
    assert distance(cached, plain) < 1e-10
    without = step_gradients(small_world, MICRO, **(model | ({"dropout": 0.0} if "dropout" in model else {"lora": {"rank": 2}})))
    assert distance(cached, without) > 1e-3  # dropout was at work


def test_no_graph_is_held_beyond_a_micro_batch(small_world: SmallWorld) -> None:
    """Rows saved for a backward pass, seen by the hook of saved tensors: never those of two micro-batches."""
    config, tuned = make_job(small_world, MICRO)
    batch = first_batch(small_world, tuned)
    towers = Towers(tuned, MICRO, (3, 0), contextlib.nullcontext)
    weights = {parameter.untyped_storage().data_ptr() for parameter in tuned.siglip.parameters()}
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim > 2 and tensor.untyped_storage().data_ptr() not in weights:
            kept.append(len(tensor))
        return tensor

    towers.begin(batch.step)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        images_bD, texts_nD = towers.embed(batch)
        assert kept == [] and images_bD.is_leaf and texts_nD.is_leaf
        (images_bD.sum() + texts_nD.sum()).backward()
        towers.finish(batch, images_bD, texts_nD)
    assert max(kept) == 2 * MICRO  # attention multiplies by row and head, and there are two heads


@pytest.mark.parametrize(
    ("asked", "mined", "found"), [(None, 0, None), (8, 0, None), (9, 0, None), (7, 0, 7), (1, 0, 1), (8, 1, 8), (15, 1, 15), (16, 1, None)]
)
def test_micro_batches_are_cached_where_a_share_of_eight_does_not_fit_into_one(asked: int | None, mined: int, found: int | None) -> None:
    assert cached_size(asked, 8, 1 + mined) == found

"""train/model/siglip.py: trained and frozen weights, weight decay, and that merged adapters equal the trained model."""

from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from eval.encoder.checkpoint import hash_weights
from eval.encoder.encoder import image_features, text_features
from tests.small_job import SmallWorld, load
from train.config.job import TrainConfig
from train.config.model import ModelConfig
from train.engine.export_folder import plain_state
from train.model.siglip import TunedModel, build_model, make_optimizer, part_of

LORA = {"rank": 4, "alpha": 8}


def built(world: SmallWorld, seed: int = 0, **keys: Any) -> TunedModel:
    return build_model(ModelConfig(base=str(world.base), **keys), str(world.base), seed)


def train_config(**keys: Any) -> TrainConfig:
    required = {"max_steps": 9, "batch_size": 8, "learning_rate": 1e-3, "eval_every_steps": 3, "checkpoint_every_steps": 3}
    return TrainConfig(**required, **keys)


def embed(model: Any, world: SmallWorld, tuned: TunedModel) -> torch.Tensor:
    dataset = load(world.manifest, "val")
    pixels = torch.stack([tuned.inputs.pixels(dataset.load_image(image)) for image in range(6)])
    return torch.cat([image_features(model, pixels), text_features(model, tuned.inputs.token_ids(dataset.captions[:6]))])


def backward(world: SmallWorld, tuned: TunedModel) -> None:
    vectors = embed(tuned.siglip.train(), world, tuned)
    scale, bias = tuned.scale_and_bias()
    (torch.sin(scale * vectors[:6] @ vectors[6:].T + bias) * torch.arange(36).reshape(6, 6)).sum().backward()


def shake(tuned: TunedModel) -> None:
    """Give everything that trains other values, so that adapters are not at their zero."""
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))


def test_full_tuning_trains_everything(small_world: SmallWorld) -> None:
    tuned = built(small_world)
    assert {name for name, _ in tuned.trainable()} == {name for name, _ in tuned.siglip.named_parameters()}
    backward(small_world, tuned)
    assert [name for name, parameter in tuned.trainable() if parameter.grad is None] == []


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_does_not_train_and_scale_and_bias_do(small_world: SmallWorld, tower: str) -> None:
    tuned = built(small_world, freeze=[tower])
    parts = {part_of(name) for name, _ in tuned.trainable()}
    assert parts == {"image", "text", "scale_bias"} - {tower}
    backward(small_world, tuned)
    assert all((parameter.grad is None) == (part_of(name) == tower) for name, parameter in tuned.siglip.named_parameters())


def test_scale_and_bias_are_read_as_the_loss_wants_them(small_world: SmallWorld) -> None:
    tuned = built(small_world, logit_bias=4.25, freeze=["image", "text"])
    scale, bias = tuned.scale_and_bias()
    assert float(scale.detach()) == pytest.approx(10.0, rel=1e-6) and float(bias.detach()) == 4.25 and scale.shape == bias.shape == ()
    assert [name for name, _ in tuned.trainable()] == ["logit_scale", "logit_bias"]


@pytest.mark.parametrize("freeze", [[], ["image"], ["text"]])
def test_every_adapter_gets_a_gradient_and_none_is_in_the_vision_head(small_world: SmallWorld, freeze: list[str]) -> None:
    tuned = built(small_world, lora=LORA, freeze=freeze)
    shake(tuned)
    backward(small_world, tuned)
    trained = dict(tuned.trainable())
    adapters = {name for name in trained if ".lora_" in name}
    assert set(trained) - adapters == {"logit_scale", "logit_bias"}
    assert not any(".head." in name for name in adapters)
    # Two layers of six projections with two matrices each, in each tower that is not frozen.
    assert len(adapters) == (2 - len(freeze)) * 2 * 6 * 2
    assert {part_of(name) for name in adapters} == {"image", "text"} - set(freeze)
    assert [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()] == []


def test_adapters_follow_from_the_seed_and_begin_as_the_base(small_world: SmallWorld) -> None:
    torch.manual_seed(11)
    first = built(small_world, seed=1, lora=LORA)
    torch.manual_seed(12)
    again, other = built(small_world, seed=1, lora=LORA), built(small_world, seed=2, lora=LORA)
    assert hash_weights(first.siglip) == hash_weights(again.siglip) != hash_weights(other.siglip)
    assert first.base_sha256 == other.base_sha256 == built(small_world).base_sha256
    base = built(small_world)
    torch.testing.assert_close(embed(first.siglip, small_world, first), embed(base.siglip, small_world, base), rtol=0, atol=1e-6)


def test_merged_is_what_peft_merges_and_gives_the_same_embeddings(small_world: SmallWorld) -> None:
    tuned = built(small_world, lora=LORA)
    shake(tuned)
    tuned.siglip.eval()
    with torch.no_grad():
        trained = embed(tuned.siglip, small_world, tuned)
        before = hash_weights(tuned.siglip)
        merged = plain_state(tuned.siglip)
        assert hash_weights(tuned.siglip) == before  # merging left nothing behind
        plain = built(small_world)
        plain.siglip.load_state_dict(merged, strict=True)
        np.testing.assert_allclose(embed(plain.siglip.eval(), small_world, plain).numpy(), trained.numpy(), atol=1e-5, rtol=0)
        for module in tuned.siglip.modules():
            if isinstance(module, LoraLayer):
                module.merge()
        states = tuned.siglip.state_dict().items()
        peft = {name.replace(".base_layer.", "."): value for name, value in states if ".lora_" not in name}
    assert peft.keys() == merged.keys()
    moved = 0.0
    original = built(small_world).siglip.state_dict()
    for name, value in merged.items():
        np.testing.assert_allclose(value.numpy(), peft[name].numpy(), atol=1e-6, rtol=0, err_msg=name)
        moved = max(moved, float((value - original[name]).abs().max()))
    assert moved > 0.01  # there was something to merge


def test_merged_of_full_tuning_is_a_float32_copy(small_world: SmallWorld) -> None:
    tuned = built(small_world)
    merged = plain_state(tuned.siglip)
    assert merged.keys() == tuned.siglip.state_dict().keys()
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in merged.values())


def test_only_matrices_of_linear_layers_and_convolutions_decay(small_world: SmallWorld) -> None:
    tuned = built(small_world)
    groups = make_optimizer(tuned, train_config(weight_decay=0.25)).param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    modules = dict(tuned.siglip.named_modules())
    for name in decay:
        owner = modules[name.rpartition(".")[0]]
        # The pooling head's attention keeps the matrices of three linear layers in one parameter of its own.
        matrix = isinstance(owner, (torch.nn.Linear, torch.nn.Conv2d)) and name.endswith(".weight") or name.endswith("in_proj_weight")
        assert decay[name] == (0.25 if matrix else 0.0), name
    for name in ("logit_scale", "logit_bias", "vision_model.head.probe", "text_model.embeddings.token_embedding.weight"):
        assert decay[name] == 0.0
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in tuned.trainable())


def test_each_part_has_its_own_rate(small_world: SmallWorld) -> None:
    keys = {"image_learning_rate": 1e-4, "text_learning_rate": 2e-4, "scale_bias_learning_rate": 3e-4}
    for lora in (None, LORA):
        groups = make_optimizer(built(small_world, lora=lora), train_config(**keys)).param_groups
        assert {group["part"]: group["peak"] for group in groups} == {"image": 1e-4, "text": 2e-4, "scale_bias": 3e-4}
        assert all(part_of(name) == group["part"] for group in groups for name in group["names"])
    default = make_optimizer(built(small_world), train_config()).param_groups
    assert {group["peak"] for group in default} == {1e-3}


def test_the_optimizer_has_the_published_constants(small_world: SmallWorld) -> None:
    optimizer = make_optimizer(built(small_world), train_config())
    assert all(group["betas"] == (0.9, 0.95) and group["eps"] == 1e-6 for group in optimizer.param_groups)


def test_gradient_checkpointing_changes_no_gradient(small_world: SmallWorld) -> None:
    for lora in (None, LORA):
        plain, frugal = built(small_world, lora=lora), built(small_world, lora=lora, gradient_checkpointing=True)
        assert any(getattr(module, "gradient_checkpointing", False) for module in frugal.siglip.modules())
        backward(small_world, plain)
        backward(small_world, frugal)
        for (name, one), (_, other) in zip(plain.trainable(), frugal.trainable(), strict=True):
            assert one.grad is not None and other.grad is not None, name
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)

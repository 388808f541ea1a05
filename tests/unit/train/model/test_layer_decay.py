"""train/model/layer_decay.py: the rate of every parameter of a small SigLIP and a small SigLIP 2, by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from eval.errors import NotFinite
from eval.processes import Processes
from tests.siglip2 import write_siglip2
from tests.small_job import SmallWorld
from train.config.job import TrainConfig
from train.config.model import ModelConfig
from train.model.layer_decay import layers_above
from train.model.siglip import TunedModel, build_model, make_optimizer
from train.optim.optimizer import peak_rates
from train.optim.update import Update

# Of two layers a tower, with layer_decay 0.5 and the image tower's own rate of 0.08, the text tower's of 0.008.
EXPECTED = {
    "vision_model.embeddings.patch_embedding.weight": 0.01,
    "vision_model.embeddings.patch_embedding.bias": 0.01,
    "vision_model.embeddings.position_embedding.weight": 0.01,
    "vision_model.encoder.layers.0.": 0.02,
    "vision_model.encoder.layers.1.": 0.04,
    "vision_model.post_layernorm.": 0.08,
    "vision_model.head.": 0.08,
    "text_model.embeddings.token_embedding.weight": 0.001,
    "text_model.embeddings.position_embedding.weight": 0.001,
    "text_model.encoder.layers.0.": 0.002,
    "text_model.encoder.layers.1.": 0.004,
    "text_model.final_layer_norm.": 0.008,
    "text_model.head.": 0.008,
    "logit_scale": 0.3,
    "logit_bias": 0.3,
}


def config(**keys: Any) -> TrainConfig:
    required = {
        "max_steps": 9,
        "batch_size": 8,
        "learning_rate": 0.5,
        "eval_every_steps": 3,
        "checkpoint_every_steps": 3,
        "warmup_steps": 0,
    }
    rates = {"image_learning_rate": 0.08, "text_learning_rate": 0.008, "scale_bias_learning_rate": 0.3}
    return TrainConfig(**required, **rates, **keys)


def expected_of(name: str) -> float:
    (rate,) = (rate for prefix, rate in EXPECTED.items() if name.startswith(prefix))
    return rate


def peaks(tuned: TunedModel, train: TrainConfig) -> dict[str, float]:
    return {name: group["peak"] for group in make_optimizer(tuned, train).param_groups for name in group["names"]}


@pytest.fixture(params=["siglip", "siglip2"])
def base(request: pytest.FixtureRequest, small_world: SmallWorld, tmp_path: Path) -> str:
    if request.param == "siglip":
        return str(small_world.base)
    return str(write_siglip2(tmp_path / "siglip2", ["a red circle at the left", "The bar, green, number 3!", "one blue thing"]))


def test_every_parameter_has_the_rate_of_its_layer(base: str) -> None:
    tuned = build_model(ModelConfig(base=base), base)
    found = peaks(tuned, config(layer_decay=0.5))
    assert sorted(found) == sorted(name for name, _ in tuned.trainable())
    assert found == {name: pytest.approx(expected_of(name)) for name in found}
    assert all(any(name.startswith(prefix) for name in found) for prefix in EXPECTED)
    lowest_highest = {"image": (0.01, 0.08), "text": (0.001, 0.008), "scale_bias": (0.3, 0.3)}
    assert peak_rates(make_optimizer(tuned, config(layer_decay=0.5))) == {part: pytest.approx(two) for part, two in lowest_highest.items()}


def test_adapters_have_the_rate_of_the_layer_they_sit_in(base: str) -> None:
    tuned = build_model(ModelConfig(base=base, lora={"rank": 2}), base)  # type: ignore[arg-type]
    found = peaks(tuned, config(layer_decay=0.5))
    assert all(".lora_" in name for name in found if not name.startswith("logit_")) and len(found) > 40
    assert sorted(set(found.values())) == pytest.approx([0.002, 0.004, 0.02, 0.04, 0.3])
    assert found == {name: pytest.approx(expected_of(name)) for name in found}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_has_no_rates(small_world: SmallWorld, tower: str) -> None:
    tuned = build_model(ModelConfig(base=str(small_world.base), freeze=[tower]), str(small_world.base))  # type: ignore[list-item]
    found = peaks(tuned, config(layer_decay=0.5))
    assert not any(name.startswith({"image": "vision_model", "text": "text_model"}[tower]) for name in found)
    assert found == {name: pytest.approx(expected_of(name)) for name in found}


@pytest.mark.parametrize("decay", [None, 1.0])
def test_without_it_groups_are_those_of_towers(small_world: SmallWorld, decay: float | None) -> None:
    tuned = build_model(ModelConfig(base=str(small_world.base)), str(small_world.base))
    groups = make_optimizer(tuned, config(layer_decay=decay)).param_groups
    assert len(groups) == 5  # two towers with and without weight decay; scale and bias without
    assert {group["part"]: group["peak"] for group in groups} == {"image": 0.08, "text": 0.008, "scale_bias": 0.3}


def test_towers_of_different_depth_count_their_own_layers() -> None:
    assert [layers_above(f"vision_model.encoder.layers.{number}.mlp.fc1.weight", 27) for number in (0, 10, 26)] == [27, 17, 1]
    assert layers_above("vision_model.embeddings.patch_embedding.weight", 27) == 28
    assert layers_above("text_model.embeddings.token_embedding.weight", 12) == 13
    assert [layers_above(name, 12) for name in ("text_model.final_layer_norm.bias", "text_model.head.weight", "logit_scale")] == [0, 0, 0]


@pytest.mark.parametrize("step", [1, 5])
def test_an_update_moves_each_layer_by_its_rate(small_world: SmallWorld, step: int) -> None:
    """Adam's first step with a gradient of 1 is the rate itself, and what decays also loses rate x decay of itself."""
    tuned = build_model(ModelConfig(base=str(small_world.base)), str(small_world.base))
    train = config(layer_decay=0.5, weight_decay=0.25, max_grad_norm=None, epsilon=1e-12)
    optimizer = make_optimizer(tuned, train)
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    update = Update(train, tuned, optimizer, Processes())
    before = {name: parameter.detach().double().clone() for name, parameter in tuned.trainable()}
    update.gradients.zero()
    for _, parameter in tuned.trainable():
        assert parameter.grad is not None
        parameter.grad.fill_(1.0)
    update.apply(step, 0.0)
    factor = {1: 1.0, 5: 0.5868240888334652}[step]  # half a cosine over 9 steps: (1 + cos(4 / 9 pi)) / 2
    for name, parameter in tuned.trainable():
        rate = expected_of(name) * factor
        expected = before[name] * (1 - rate * decay[name]) - rate
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_message_names_the_lowest_and_the_highest_rate(small_world: SmallWorld) -> None:
    tuned = build_model(ModelConfig(base=str(small_world.base)), str(small_world.base))
    for decay, rates in ((0.5, "0.001 to 0.3"), (None, "0.008 and 0.08 and 0.3")):
        train = config(layer_decay=decay)
        update = Update(train, tuned, make_optimizer(tuned, train), Processes())
        update.gradients.zero()
        with torch.no_grad():
            dict(tuned.trainable())["logit_bias"].fill_(float("inf"))
        with pytest.raises(NotFinite, match=f"weights not finite after the update, at the rate {rates}, in 1 tensor"):
            update.apply(1, 0.0)

"""train/optim/ema.py: the recursion against a loop over floats, and that the model holds the averages only where it is asked to."""

from typing import Any

import pytest
import torch

from tests.small_job import SmallWorld
from train.config.model import ModelConfig
from train.model.siglip import TunedModel, build_model
from train.optim.ema import WeightAverage, decay_at


def built(world: SmallWorld, **keys: Any) -> TunedModel:
    return build_model(ModelConfig(base=str(world.base), **keys), str(world.base))


def move(tuned: TunedModel, draws: torch.Generator) -> None:
    """An update of every weight that trains."""
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))


def copies(tuned: TunedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tuned.trainable()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_factor_warms_up_to_the_decay() -> None:
    assert [decay_at(t, 0.99) for t in (1, 2, 8)] == [2 / 11, 3 / 12, 0.5]
    assert decay_at(889, 0.99) == 890 / 899 < 0.99 == decay_at(892, 0.99) == decay_at(10**6, 0.99)
    assert decay_at(1, 0.1) == 0.1


@pytest.mark.parametrize("keys", [{}, {"lora": {"rank": 2}}, {"freeze": ["image"]}], ids=["all", "lora", "frozen"])
@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_the_average_is_the_recursion_in_float64(small_world: SmallWorld, keys: dict[str, Any], decay: float) -> None:
    tuned, draws = built(small_world, **keys), torch.Generator().manual_seed(1)
    average, seen = WeightAverage(tuned, decay), [copies(tuned)]
    for _ in range(12):
        move(tuned, draws)
        average.update()
        seen.append(copies(tuned))
    found = dict(average.named())
    assert list(found) == list(seen[0]) and average.num_updates == 12
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    for name, tensor in found.items():
        expected = [float(value) for value in seen[0][name].flatten()[:50]]
        for t in range(1, 13):
            d = min(decay, (1 + t) / (10 + t))
            expected = [d * old + (1 - d) * float(new) for old, new in zip(expected, seen[t][name].flatten()[:50], strict=True)]
        torch.testing.assert_close(tensor.flatten()[:50].double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
        assert not torch.equal(tensor, seen[-1][name])


def test_the_model_holds_the_averages_and_then_the_very_weights_again(small_world: SmallWorld) -> None:
    tuned, draws = built(small_world), torch.Generator().manual_seed(2)
    places = [parameter.data_ptr() for _, parameter in tuned.trainable()]
    average = WeightAverage(tuned, 0.9)
    move(tuned, draws)
    average.update()
    weights, averages = copies(tuned), {name: tensor.clone() for name, tensor in average.named()}
    assert not same(weights, averages)
    with average.in_model():
        assert same(copies(tuned), averages)
    assert same(copies(tuned), weights) and same(dict(average.named()), averages)
    with pytest.raises(ZeroDivisionError), average.in_model():
        raise ZeroDivisionError
    assert same(copies(tuned), weights) and same(dict(average.named()), averages)
    with average.in_model():
        average.put_back()  # as a checkpoint does that is written in the middle of an evaluation
        assert same(copies(tuned), weights) and same(dict(average.named()), averages)
    assert same(copies(tuned), weights) and same(dict(average.named()), averages)
    assert [parameter.data_ptr() for _, parameter in tuned.trainable()] == places


def test_it_begins_as_the_weights_and_can_begin_again(small_world: SmallWorld) -> None:
    tuned, draws = built(small_world), torch.Generator().manual_seed(3)
    average = WeightAverage(tuned, 0.9)
    assert same(dict(average.named()), copies(tuned)) and average.num_updates == 0
    move(tuned, draws)
    average.update()
    average.restart()
    assert same(dict(average.named()), copies(tuned)) and average.num_updates == 0
    move(tuned, draws)
    assert not same(dict(average.named()), copies(tuned))  # a copy, and not the weights themselves

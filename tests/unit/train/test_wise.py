"""train/wise/curve.py: weights between two models, and the rule that chooses among them."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from train.siglip.watch import Recall
from train.wise.curve import choose, draw_curve, interpolate

NUMBERS = st.floats(-1e4, 1e4, width=32)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6), st.floats(0, 1))
def test_weights_between_are_those_of_the_formula_in_float64(pairs: list[tuple[float, float]], alpha: float) -> None:
    base, tuned = (torch.tensor(column) for column in zip(*pairs, strict=True))
    found = interpolate({"w": base}, {"w": tuned}, alpha)["w"]
    expected = [(1 - alpha) * one + alpha * other for one, other in pairs]
    largest = max(abs(number) for pair in pairs for number in pair)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=4e-7 * largest + 1e-37)


def test_the_ends_are_the_very_bits() -> None:
    odd = [torch.tensor([-0.0, 0.1, 1e-42]), torch.tensor([3.0, -0.0, 0.7])]
    for alpha, expected in ((0.0, odd[0]), (1.0, odd[1])):
        found = interpolate({"w": odd[0]}, {"w": odd[1]}, alpha)["w"]
        assert found.numpy().tobytes() == expected.numpy().tobytes()


def recall(mean: float, high: float = 0.1) -> Recall:
    return Recall(mean, [mean - 0.1, mean + 0.1], 0.0, [-0.3, high])


@pytest.mark.parametrize(
    ("val", "dropped", "best", "words"),
    [
        ({0.0: 0.1, 0.5: 0.3, 1.0: 0.4}, {"a": [1.0]}, 0.5, "2 of 3"),
        ({0.0: 0.1, 0.5: 0.3, 1.0: 0.4}, {"a": []}, 1.0, "3 of 3"),
        ({0.0: 0.1, 0.5: 0.3, 1.0: 0.4}, {}, 1.0, "3 of 3"),
        ({0.0: 0.1, 0.5: 0.3, 1.0: 0.4}, {"a": [1.0], "b": [0.5]}, 0.0, "1 of 3"),
        ({0.2: 0.3, 0.5: 0.3}, {"a": []}, 0.2, "2 of 2"),  # of equals the one nearer to the base
        ({0.5: 0.3, 0.8: 0.4}, {"a": [0.5], "b": [0.5, 0.8]}, 1.0, "none qualifies"),
    ],
)
def test_the_best_on_val_where_nothing_is_forgotten(val: dict[float, float], dropped: dict[str, Any], best: float, words: str) -> None:
    watched = {name: {alpha: recall(0.5, -0.01 if alpha in at else 0.1) for alpha in val} for name, at in dropped.items()}
    found, why = choose({alpha: recall(mean, -0.01) for alpha, mean in val.items()}, watched)  # a drop on val bars nothing
    assert found == best and words in why


def test_the_curve_is_a_picture_and_a_drawing_with_every_set(tmp_path: Path) -> None:
    sets = {name: {alpha: recall(alpha / 2) for alpha in (0.0, 0.5, 1.0)} for name in ("val", "watch-old")}
    draw_curve(tmp_path / "wise", sets, 0.5)
    with Image.open(tmp_path / "wise.png") as picture:
        assert picture.size[0] > 300
    text = (tmp_path / "wise.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    first = (tmp_path / "wise.svg").read_bytes()
    draw_curve(tmp_path / "wise", sets, 0.5)
    assert (tmp_path / "wise.svg").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wise.png", "wise.svg"]

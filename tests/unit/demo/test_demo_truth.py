"""Truth of captions, against a reading that shares nothing with the words and the claims of the demo."""

import random

import numpy as np
import pytest

from demo.phrases import TEMPLATES, WORDS, caption, complete_caption, partial_claims
from demo.scenes import Scene, neighbours, random_scene
from demo.truth import Claims, Description, full_claims, is_true
from tests.unit.demo.demo_reading import DrawnScenes, read


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(7)
    seeds = [random_scene(rng, rng.choice(("past", "job"))) for _ in range(60)]
    return seeds + [other for seed in seeds for other in neighbours(seed)]


@pytest.mark.parametrize("wording", ["old", "new"])
def test_captions_are_true_exactly_where_an_independent_reading_says(scenes: list[Scene], wording) -> None:
    rng, drawn = random.Random(8), DrawnScenes(scenes)
    num_true_elsewhere = 0
    for number in range(120):
        scene = scenes[number % 60]
        claims = partial_claims(scene, rng) if number % 2 else full_claims(scene)
        text = caption(claims, rng, wording)
        expected_S = drawn.where_true(read(text))
        np.testing.assert_array_equal(expected_S, [is_true(claims, other) for other in scenes], err_msg=text)
        assert is_true(claims, scene), text
        num_true_elsewhere += expected_S.sum() - 1
    assert num_true_elsewhere > 100, "the partial captions must be true of other scenes too, or this test shows little"


def test_every_template_and_word_is_read() -> None:
    rng = random.Random(9)
    texts = " ".join(complete_caption(random_scene(rng, "job"), rng, "new") for _ in range(4000)).replace(",", "").split()
    assert {word for words in WORDS.values() for word in words} <= set(texts)
    for (_, num_things), groups in TEMPLATES.items():
        for template in groups["old"] + groups["new"]:
            named = template.format("a red circle", "a blue star", "a black box")
            assert len(read(named)[1]) == num_things


def test_a_neighbour_differs_in_one_step_and_a_complete_caption_tells_it_apart() -> None:
    rng = random.Random(10)
    for _ in range(50):
        scene = random_scene(rng, "job")
        for other in neighbours(scene):
            assert not is_true(full_claims(other), scene)
            differing = [(a, b) for a, b in zip(scene.things, other.things, strict=True) if a != b]
            if other.layout != scene.layout:
                assert not differing
            elif len(differing) == 1:
                first, second = (str(thing).split() for thing in differing[0])
                assert sum(a != b for a, b in zip(first, second, strict=True)) == 1
            else:
                assert len(differing) == 2 and set(other.things) == set(scene.things)


def test_order_and_distinctness_decide() -> None:
    scene = Scene.from_key("column: large red circle, small red circle, small blue star")
    red, star = Description(colour="red"), Description(shape="star")
    assert is_true(Claims((red, red), ((0, "above", 1),)), scene)
    assert not is_true(Claims((red, red, red), ()), scene), "two red things are not three"
    assert is_true(Claims((star, red), ((1, "above", 0),)), scene)
    assert not is_true(Claims((star, red), ((0, "above", 1),)), scene)
    assert not is_true(Claims((star, red), ((1, "left of", 0),)), scene)
    assert not is_true(
        Claims((red, red, star), ((0, "above", 1), (1, "above", 2))), Scene.from_key("column: large red circle, small blue star")
    )


def test_scene_keys_read_back_and_bad_ones_are_refused() -> None:
    rng = random.Random(11)
    for _ in range(100):
        scene = random_scene(rng, "past")
        assert Scene.from_key(scene.key) == scene
    for bad in ("ring: large red circle, small blue star", "row: large red circle", "row: large pink circle, small blue star", ""):
        with pytest.raises(ValueError, match="expected a scene key"):
            Scene.from_key(bad)

"""Drawn pixels show the claimed colour at the claimed place."""

import random

import numpy as np
import pytest

from demo.drawing import PALETTE, RADII, SIDE, draw, place
from demo.scenes import COLOURS, SHAPES, SIZES, Scene, Thing, random_scene


def nearest_colour(rgb: np.ndarray) -> str:
    return min(PALETTE, key=lambda name: float(((np.array(PALETTE[name], dtype=float) - rgb) ** 2).sum()))


@pytest.mark.parametrize("look", ["plain", "busy"])
def test_each_thing_shows_its_colour_where_its_place_says(look) -> None:
    rng = random.Random(3)
    for number in range(150):
        scene = random_scene(rng, "job")
        pixels_HWC = np.asarray(draw(scene, random.Random(number), look), dtype=float)
        assert pixels_HWC.shape == (SIDE, SIDE, 3)
        # The station tells where a thing must be, whatever its jitter: look for its colour around there.
        found = _centres(scene, pixels_HWC)
        along = 0 if scene.layout == "row" else 1
        assert all(first[along] + 8 < second[along] for first, second in zip(found, found[1:], strict=False)), scene.key


def _centres(scene: Scene, pixels_HWC: np.ndarray) -> list[tuple[float, float]]:
    """Mean (x, y) of the pixels nearest to each thing's colour, within that thing's share of the line."""
    centres = []
    share = SIDE / len(scene.things)
    for number, thing in enumerate(scene.things):
        near_HW = np.abs(pixels_HWC - np.array(PALETTE[thing.colour])).max(axis=2) <= 26
        ys, xs = near_HW.nonzero()
        inside = np.abs((xs if scene.layout == "row" else ys) + 0.5 - (number + 0.5) * share) < share / 2
        assert inside.sum() >= 25, f"{thing} of {scene.key} covers {inside.sum()} pixels where it should stand"
        centres.append((float(xs[inside].mean()), float(ys[inside].mean())))
    return centres


def test_centres_have_the_colour_of_the_thing_in_every_shape_size_and_look() -> None:
    for look in ("plain", "busy"):
        for shape in SHAPES:
            for size in SIZES:
                for colour in COLOURS:
                    scene = Scene("row", (Thing(size, colour, shape), Thing(size, colour, "cross" if shape != "cross" else "star")))
                    pixels_HWC = np.asarray(draw(scene, random.Random(1), look), dtype=float)
                    # The background takes its random numbers first, so the places are read from the picture, not drawn again.
                    centres = _centres(scene, pixels_HWC)
                    x, y = (round(value) for value in centres[0])
                    assert nearest_colour(pixels_HWC[y, x]) == colour


def test_sizes_and_shapes_cover_different_areas() -> None:
    covered = {}
    for size in SIZES:
        for shape in SHAPES:
            scene = Scene("row", (Thing(size, "blue", shape), Thing("small", "red", "circle")))
            pixels_HWC = np.asarray(draw(scene, random.Random(2), "plain"), dtype=float)
            covered[size, shape] = int((np.abs(pixels_HWC - np.array(PALETTE["blue"])).max(axis=2) <= 26).sum())
    assert min(covered["large", shape] for shape in SHAPES) > 1.3 * max(covered["small", shape] for shape in SHAPES)


def test_places_stay_on_the_picture_and_apart() -> None:
    rng = random.Random(4)
    for _ in range(300):
        scene = random_scene(rng, "past")
        placements = place(scene, rng, "busy")
        along = [placed.x if scene.layout == "row" else placed.y for placed in placements]
        across = [placed.y if scene.layout == "row" else placed.x for placed in placements]
        assert all(second - first > 16 for first, second in zip(along, along[1:], strict=False))
        assert max(across) - min(across) <= 4
        assert all(RADII["large"] < value < SIDE - RADII["large"] for value in along + across)


def test_the_same_seed_draws_the_same_picture_and_another_does_not() -> None:
    scene = random_scene(random.Random(5), "job")
    first, again, other = (draw(scene, random.Random(seed), "busy").tobytes() for seed in (1, 1, 2))
    assert first == again != other

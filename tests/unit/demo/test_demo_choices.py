"""The committed choice set: what is called true is true, what is called false is false, and the category is the only difference."""

import io
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from demo.make_choices import build_choices
from demo.make_data import DATA
from demo.scenes import COLOURS, LAYOUTS, SHAPES, SIZES, STEPS, Scene, Thing
from eval.choices.choice_set import read_choices
from tests.unit.demo.demo_reading import DrawnScenes, read


@pytest.fixture(scope="module")
def committed() -> list[dict]:
    return pyarrow.parquet.read_table(DATA / "choices.parquet").to_pylist()


@pytest.fixture(scope="module")
def known() -> set[str]:
    return set(pyarrow.parquet.read_table(DATA / "scenes.parquet", columns=["scene"])["scene"].to_pylist())


def questions(row: dict) -> list[tuple[str, list[str]]]:
    """(true caption, false captions) of each picture of a row."""
    if row["image"] is not None:
        return [(row["caption"], row["false_captions"])]
    first, second = row["captions"]
    return [(first, [second]), (second, [first])]


def scene_of(text: str) -> Scene:
    """The scene a complete caption tells, by the independent reading."""
    axis, things = read(text)
    assert axis is not None
    return Scene(LAYOUTS[axis], tuple(Thing(SIZES[size], COLOURS[colour], SHAPES[shape]) for size, colour, shape in things))


def difference(one: Scene, other: Scene) -> str:
    """In what two scenes differ, by comparing them thing by thing."""
    if one.layout != other.layout:
        return "layout" if one.things == other.things else "more"
    if one.things != other.things and set(one.things) == set(other.things):
        return "order"
    kinds = [
        kind
        for a, b in zip(one.things, other.things, strict=True)
        for kind in ("size", "colour", "shape")
        if getattr(a, kind) != getattr(b, kind)
    ]
    return kinds[0] if len(kinds) == 1 else "more"


def test_it_reads_as_a_choice_set_and_is_small(committed: list[dict]) -> None:
    choices = read_choices(DATA / "choices.parquet")
    assert Counter((example.kind, example.category) for example in choices.examples) == {
        (kind, step): number for step in STEPS for kind, number in (("choice", 30), ("pair", 8))
    }
    assert choices.num_images == 230 == len({image.key for image in choices.images})
    assert (DATA / "choices.parquet").stat().st_size < 1_000_000
    assert all(1 <= len(row["false_captions"]) <= 3 for row in committed if row["false_captions"] is not None)


def test_true_is_true_and_false_is_false_and_differs_in_its_category_alone(committed: list[dict]) -> None:
    for row in committed:
        for true, false in questions(row):
            scene = scene_of(true)
            drawn = DrawnScenes([scene])
            assert drawn.where_true(read(true)).all(), true
            for text in false:
                assert not drawn.where_true(read(text)).any(), (true, text)
                assert difference(scene, scene_of(text)) == row["category"], (true, text)


def test_no_scene_is_known_from_the_job_or_from_pre_training(committed: list[dict], known: set[str]) -> None:
    told = [scene_of(text) for row in committed for true, false in questions(row) for text in (true, *false)]
    assert not {scene.key for scene in told} & known
    assert {scene.world for scene in told} == {"job"}


def test_made_again_it_is_the_same(committed: list[dict], known: set[str]) -> None:
    again = build_choices(known)
    assert [row["id"] for row in again] == [row["id"] for row in committed]
    for new, old in zip(again, committed, strict=True):
        for column in ("caption", "false_captions", "captions", "category"):
            assert new.get(column) == old[column]
        for one, other in zip(_pictures(new), _pictures(old), strict=True):
            np.testing.assert_array_equal(one, other)


def _pictures(row: dict) -> list[np.ndarray]:
    images = [row["image"]] if row.get("image") is not None else row["images"]
    return [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in images]

"""Scenes: two or three coloured shapes in a row or in a column, and which scenes lie one step apart.

A scene is a meaning, not a picture: every drawing of it shares its key. Scenes are halved by a hash of that key into two worlds, so
that what the checkpoints were pre-trained on and what the job tunes and tests on never share a meaning.
"""

import hashlib
import itertools
import random
from dataclasses import dataclass, replace
from typing import Literal

Layout = Literal["row", "column"]
World = Literal["past", "job"]

SIZES = ("large", "small")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
LAYOUTS: tuple[Layout, Layout] = ("row", "column")
KINDS: dict[str, tuple[str, ...]] = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
STEPS = (*KINDS, "order", "layout")


@dataclass(frozen=True)
class Thing:
    """One coloured shape."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things side by side (a row, first is leftmost) or on top of one another (a column, first is topmost)."""

    layout: Layout
    things: tuple[Thing, ...]

    @property
    def key(self) -> str:
        """The canonical name, the same for every drawing and every paraphrase: ``row: large red circle, small blue star``."""
        return f"{self.layout}: {', '.join(map(str, self.things))}"

    @property
    def world(self) -> World:
        """Which half of all scenes this one belongs to, by a hash of its key."""
        return "job" if hashlib.sha256(self.key.encode()).digest()[0] % 2 else "past"

    @staticmethod
    def from_key(key: str) -> "Scene":
        """Read a canonical name back; raises ValueError where it is not one."""
        layout, _, listed = key.partition(": ")
        words = [thing.split() for thing in listed.split(", ")]
        known = all(len(w) == 3 and w[0] in SIZES and w[1] in COLOURS and w[2] in SHAPES for w in words)
        if layout not in LAYOUTS or not known or len(words) not in (2, 3):
            raise ValueError(f"expected a scene key such as 'row: large red circle, small blue star', found {key!r}")
        return Scene(layout, tuple(Thing(*w) for w in words))


def random_scene(rng: random.Random, world: World) -> Scene:
    """Draw a scene of that world: two or three things with equal chance, no two of them the same."""
    while True:
        num_things = rng.choice((2, 3))
        things = tuple(Thing(rng.choice(SIZES), rng.choice(COLOURS), rng.choice(SHAPES)) for _ in range(num_things))
        scene = Scene(rng.choice(LAYOUTS), things)
        if len(set(things)) == num_things and scene.world == world:
            return scene


def neighbours(scene: Scene) -> list[Scene]:
    """All scenes one step away, of either world: one attribute of one thing, the order of two things, or the layout."""
    found = [Scene(layout, scene.things) for layout in LAYOUTS if layout != scene.layout]
    for first, second in itertools.combinations(range(len(scene.things)), 2):
        found.append(_with(scene, {first: scene.things[second], second: scene.things[first]}))
    for place, thing in enumerate(scene.things):
        for kind, values in KINDS.items():
            others = (value for value in values if value != getattr(thing, kind))
            found += [_with(scene, {place: replace(thing, **{kind: value})}) for value in others]
    return [other for other in found if len(set(other.things)) == len(other.things)]


def random_family(rng: random.Random, world: World, num_scenes: int) -> list[Scene]:
    """Draw a scene and up to ``num_scenes - 1`` of its neighbours of the same world, each kind of step equally likely."""
    seed = random_scene(rng, world)
    by_step: dict[str, list[Scene]] = {}
    for other in neighbours(seed):
        if other.world == world:
            by_step.setdefault(step_between(seed, other), []).append(other)
    family = [seed]
    while len(family) < num_scenes and by_step:
        step = rng.choice(sorted(by_step))
        family.append(by_step[step].pop(rng.randrange(len(by_step[step]))))
        if not by_step[step]:
            del by_step[step]
    return family


def _with(scene: Scene, changed: dict[int, Thing]) -> Scene:
    return Scene(scene.layout, tuple(changed.get(place, thing) for place, thing in enumerate(scene.things)))


def step_between(scene: Scene, other: Scene) -> str:
    """Name the step (one of ``STEPS``) from a scene to one of its neighbours."""
    if scene.layout != other.layout:
        return "layout"
    if sorted(map(str, scene.things)) == sorted(map(str, other.things)):
        return "order"
    differing = next((a, b) for a, b in zip(scene.things, other.things, strict=True) if a != b)
    return next(kind for kind in KINDS if getattr(differing[0], kind) != getattr(differing[1], kind))

"""Claims: what a caption says, and whether it is true of a scene. Exact, so that tests can count false negatives."""

import itertools
from dataclasses import dataclass
from typing import Literal

from demo.scenes import KINDS, Scene, Thing

Relation = Literal["left of", "above"]
RELATION_OF = {"row": "left of", "column": "above"}


@dataclass(frozen=True)
class Description:
    """What is said of one thing; None where the caption leaves the attribute out."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Say whether nothing in the description contradicts the thing."""
        return all(getattr(self, kind) in (None, getattr(thing, kind)) for kind in KINDS)


@dataclass(frozen=True)
class Claims:
    """The meaning of a caption: there are these things, all different, and ``(i, relation, j)`` holds between them.

    A caption claims nothing of things that it does not mention. Paraphrases share their claims: "B right of A" is "A left of B".
    """

    descriptions: tuple[Description, ...]
    relations: tuple[tuple[int, Relation, int], ...]


def holds(scene: Scene, first: int, relation: Relation, second: int) -> bool:
    """Say whether the thing at place ``first`` of the scene stands in the relation to the thing at place ``second``."""
    return RELATION_OF[scene.layout] == relation and first < second


def is_true(claims: Claims, scene: Scene) -> bool:
    """Say whether some choice of different things of the scene fits every description and every relation.

    >>> from demo.scenes import Scene
    >>> scene = Scene.from_key("row: large red circle, small blue square")
    >>> is_true(Claims((Description(colour="red"), Description(shape="square")), ((0, "left of", 1),)), scene)
    True
    >>> is_true(Claims((Description(colour="red"), Description(shape="square")), ((1, "left of", 0),)), scene)
    False
    """
    return any(
        all(said.fits(scene.things[place]) for said, place in zip(claims.descriptions, places, strict=True))
        and all(holds(scene, places[first], relation, places[second]) for first, relation, second in claims.relations)
        for places in itertools.permutations(range(len(scene.things)), len(claims.descriptions))
    )


def full_claims(scene: Scene) -> Claims:
    """Everything there is to say of a scene: each attribute of each thing, and each neighbouring pair's relation."""
    relation: Relation = "left of" if scene.layout == "row" else "above"
    return Claims(
        tuple(Description(thing.size, thing.colour, thing.shape) for thing in scene.things),
        tuple((place, relation, place + 1) for place in range(len(scene.things) - 1)),
    )

"""An independent reading of the demo's captions: own word lists, own grammar, relations from drawn coordinates.

Shapes: S scenes, P=3 places, K=3 kinds of attribute.
"""

import itertools
import random
import re

import numpy as np

from demo.drawing import place
from demo.scenes import Scene

SIZE = {"large": 0, "big": 0, "huge": 0, "small": 1, "tiny": 1, "little": 1}
COLOUR_PAIRS = "red crimson, orange tangerine, yellow golden, green emerald, blue azure, purple violet, white ivory, black ebony"
COLOUR = {word: number for number, pair in enumerate(COLOUR_PAIRS.split(", ")) for word in pair.split()}
NOUN_GROUPS = "circle disc, square box, triangle wedge, star, diamond rhombus, cross plus"
NOUN = {word: number for number, group in enumerate(NOUN_GROUPS.split(", ")) for word in group.split()} | {"shape": None, "thing": None}
THING = re.compile(rf"\b(?:an? )?(?:({'|'.join(SIZE)}) )?(?:({'|'.join(COLOUR)}) )?({'|'.join(NOUN)})\b")
LEFT, ABOVE = 0, 1

# The caption with its things replaced by 1, 2, 3 as they come; then who is left of (or above) whom.
SKELETONS: dict[str, tuple[int | None, str]] = {
    "there is 1": (None, "1"),
    "a picture of 1": (None, "1"),
    "here we see 1": (None, "1"),
    "1 left of 2": (LEFT, "12"),
    "1 right of 2": (LEFT, "21"),
    "1 to the left of 2": (LEFT, "12"),
    "1 to the right of 2": (LEFT, "21"),
    "1 on the left and 2 on the right": (LEFT, "12"),
    "1 on the right and 2 on the left": (LEFT, "21"),
    "from left to right 1 and 2": (LEFT, "12"),
    "1 with 2 on its right": (LEFT, "12"),
    "1 with 2 on its left": (LEFT, "21"),
    "1 above 2": (ABOVE, "12"),
    "1 over 2": (ABOVE, "12"),
    "1 below 2": (ABOVE, "21"),
    "1 under 2": (ABOVE, "21"),
    "1 beneath 2": (ABOVE, "21"),
    "1 at the top and 2 at the bottom": (ABOVE, "12"),
    "1 at the bottom and 2 at the top": (ABOVE, "21"),
    "from top to bottom 1 and 2": (ABOVE, "12"),
    "1 with 2 beneath it": (ABOVE, "12"),
    "1 left of 2 left of 3": (LEFT, "123"),
    "1 right of 2 right of 3": (LEFT, "321"),
    "from left to right 1 2 and 3": (LEFT, "123"),
    "from right to left 1 2 and 3": (LEFT, "321"),
    "1 between 2 on the left and 3 on the right": (LEFT, "213"),
    "1 on the left 2 in the middle 3 on the right": (LEFT, "123"),
    "1 right of 2 and left of 3": (LEFT, "213"),
    "1 above 2 above 3": (ABOVE, "123"),
    "1 over 2 over 3": (ABOVE, "123"),
    "1 below 2 below 3": (ABOVE, "321"),
    "1 beneath 2 beneath 3": (ABOVE, "321"),
    "from top to bottom 1 2 and 3": (ABOVE, "123"),
    "from bottom to top 1 2 and 3": (ABOVE, "321"),
    "1 between 2 at the top and 3 at the bottom": (ABOVE, "213"),
    "1 under 2 and over 3": (ABOVE, "213"),
}
Reading = tuple[int | None, tuple[tuple[int | None, int | None, int | None], ...]]


def read(text: str) -> Reading:
    """The axis and the things in order along it, as attribute numbers; KeyError for a caption of unknown form."""
    things: list[tuple[int | None, int | None, int | None]] = []

    def keep(found: re.Match[str]) -> str:
        size, colour, noun = found.groups()
        things.append((SIZE[size] if size else None, COLOUR[colour] if colour else None, NOUN[noun]))
        return str(len(things))

    axis, order = SKELETONS[THING.sub(keep, text.lower().replace(",", ""))]
    return axis, tuple(things[int(number) - 1] for number in order)


class DrawnScenes:
    """Scenes as arrays: attribute numbers and drawn coordinates, so that truth is read off geometry by trying every assignment."""

    def __init__(self, scenes: list[Scene]) -> None:
        self.attributes_SPK = np.full((len(scenes), 3, 3), -1)
        self.centres_SP2 = np.full((len(scenes), 3, 2), np.nan)
        for number, scene in enumerate(scenes):
            for slot, drawn in enumerate(place(scene, random.Random(number), "busy")):
                thing = drawn.thing
                self.attributes_SPK[number, slot] = SIZE[thing.size], COLOUR[thing.colour], NOUN[thing.shape]
                self.centres_SP2[number, slot] = drawn.x, drawn.y

    def where_true(self, reading: Reading) -> np.ndarray:
        """Booleans true_S: some different things fit the descriptions and stand clearly, by over 8 pixels, in the order said."""
        axis, things = reading
        true_S = np.zeros(len(self.attributes_SPK), dtype=bool)
        for places in itertools.permutations(range(3), len(things)):
            fits_S = np.ones_like(true_S)
            for slot, said in zip(places, things, strict=True):
                fits_S &= self.attributes_SPK[:, slot, 0] >= 0
                for kind, value in enumerate(said):
                    fits_S &= (value is None) | (self.attributes_SPK[:, slot, kind] == value)
            for first, second in itertools.pairwise(places):
                fits_S &= self.centres_SP2[:, second, axis] - self.centres_SP2[:, first, axis] > 8
            true_S |= fits_S
        return true_S

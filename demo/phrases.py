"""Phrases: the words for a claim. Each claim can be said in many ways, most of which the base checkpoint seldom read."""

import random
from typing import Literal

from demo.scenes import Scene
from demo.truth import Claims, Description, full_claims

Wording = Literal["old", "new"]

# The first word of each is the plain one, all that the old wording knows.
WORDS: dict[str, tuple[str, ...]] = {
    "large": ("large", "big", "huge"),
    "small": ("small", "tiny", "little"),
    "red": ("red", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "white": ("white", "ivory"),
    "black": ("black", "ebony"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
}
ANY_SHAPE = ("shape", "thing")
INTRODUCTIONS = ("there is {}", "a picture of {}", "here we see {}")

# {0} is the leftmost or topmost thing, {1} and {2} follow. Every template names each thing once and states every relation.
TEMPLATES: dict[tuple[str, int], dict[Wording, tuple[str, ...]]] = {
    ("row", 2): {
        "old": ("{0} left of {1}", "{1} right of {0}", "{0} to the left of {1}"),
        "new": (
            "{1} to the right of {0}",
            "{0} on the left and {1} on the right",
            "{1} on the right and {0} on the left",
            "from left to right, {0} and {1}",
            "{0} with {1} on its right",
            "{1} with {0} on its left",
        ),
    },
    ("column", 2): {
        "old": ("{0} above {1}", "{1} below {0}"),
        "new": (
            "{1} under {0}",
            "{1} beneath {0}",
            "{0} over {1}",
            "{0} at the top and {1} at the bottom",
            "{1} at the bottom and {0} at the top",
            "from top to bottom, {0} and {1}",
            "{0} with {1} beneath it",
        ),
    },
    ("row", 3): {
        "old": ("{0} left of {1} left of {2}", "{2} right of {1} right of {0}"),
        "new": (
            "from left to right, {0}, {1} and {2}",
            "from right to left, {2}, {1} and {0}",
            "{1} between {0} on the left and {2} on the right",
            "{0} on the left, {1} in the middle, {2} on the right",
            "{1} right of {0} and left of {2}",
        ),
    },
    ("column", 3): {
        "old": ("{0} above {1} above {2}", "{2} below {1} below {0}"),
        "new": (
            "from top to bottom, {0}, {1} and {2}",
            "from bottom to top, {2}, {1} and {0}",
            "{1} between {0} at the top and {2} at the bottom",
            "{0} over {1} over {2}",
            "{2} beneath {1} beneath {0}",
            "{1} under {0} and over {2}",
        ),
    },
}


def phrase(description: Description, rng: random.Random, wording: Wording, article: bool) -> str:
    """Name one thing; the new wording takes any word for each attribute, the old one the plain word only."""
    said = [description.size, description.colour]
    words = [rng.choice(WORDS[value][: None if wording == "new" else 1]) for value in said if value]
    nouns = WORDS[description.shape] if description.shape else ANY_SHAPE
    words.append(rng.choice(nouns[: None if wording == "new" else 1]))
    if article:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    return " ".join(words)


def caption(claims: Claims, rng: random.Random, wording: Wording) -> str:
    """Say the claims of one or of several things in an unbroken line, as :func:`partial_claims` and ``full_claims`` make them.

    The new wording contains the old one: it draws from the templates and the words of both.
    """
    article = rng.random() < 0.75
    names = [phrase(description, rng, wording, article) for description in claims.descriptions]
    if len(names) == 1:
        return rng.choice(INTRODUCTIONS).format(names[0])
    layout = "row" if claims.relations[0][1] == "left of" else "column"
    known = TEMPLATES[layout, len(names)]
    templates = known["old"] if wording == "old" else known["old"] + known["new"]
    return rng.choice(templates).format(*names)


def complete_caption(scene: Scene, rng: random.Random, wording: Wording) -> str:
    """Say everything about a scene."""
    return caption(full_claims(scene), rng, wording)


def partial_claims(scene: Scene, rng: random.Random) -> Claims:
    """Leave something out: a thing, the sizes, some attributes, or everything but one thing."""
    full = full_claims(scene)
    descriptions = list(full.descriptions)
    kind = rng.choices(("sizes", "attributes", "thing", "alone"), (4, 3, 3 if len(descriptions) == 3 else 0, 0.5))[0]
    if kind == "alone":
        return Claims((rng.choice(descriptions),), ())
    if kind == "thing":
        descriptions.pop(rng.randrange(3))
    elif kind == "sizes":
        descriptions = [Description(None, said.colour, said.shape) for said in descriptions]
    else:
        place = rng.randrange(len(descriptions))
        said = descriptions[place]
        left_out = rng.choice(("size", "colour", "shape"))
        descriptions[place] = Description(**{k: None if k == left_out else getattr(said, k) for k in ("size", "colour", "shape")})
    return Claims(tuple(descriptions), full.relations[: len(descriptions) - 1])


def vocabulary() -> list[str]:
    """Every word that any caption can hold, sorted, punctuation left out."""
    texts = [word for words in WORDS.values() for word in words] + list(ANY_SHAPE) + list(INTRODUCTIONS) + ["a an"]
    texts += [template for known in TEMPLATES.values() for group in known.values() for template in group]
    words = {word.strip(",") for text in texts for word in text.split()}
    return sorted(word for word in words if not word.startswith("{"))

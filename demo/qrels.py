"""Relevance: every (image, caption) pair of train that is true though the manifest does not state it."""

from collections.abc import Iterator

from demo.manifest import Row, normalised
from demo.scenes import KINDS, Scene
from demo.truth import RELATION_OF, Claims, is_true


def unstated_truths(manifest: list[Row]) -> Iterator[tuple[str, str]]:
    """Yield (image id, caption id) where the caption is true of the image and none of its scene's captions reads the same.

    A caption's id is ``IMAGE_ID#K``, K its place in that image's list. Reading the same means equal normalised text.
    """
    train = [row for row in manifest if row.split == "train"]
    rows_of: dict[Scene, list[Row]] = {}
    for row in train:
        rows_of.setdefault(row.scene, []).append(row)
    stated = {scene: {normalised(text) for row in rows for text in row.captions} for scene, rows in rows_of.items()}
    index = _index(list(rows_of))
    true_of: dict[Claims, list[Scene]] = {}
    for owner in train:
        for place, (text, claims) in enumerate(zip(owner.captions, owner.claims, strict=True)):
            if claims not in true_of:
                true_of[claims] = [scene for scene in _candidates(claims, index, list(rows_of)) if is_true(claims, scene)]
            for scene in true_of[claims]:
                if normalised(text) not in stated[scene]:
                    yield from ((row.id, f"{owner.id}#{place}") for row in rows_of[scene])


def _index(scenes: list[Scene]) -> dict[str, set[int]]:
    """Which scenes hold each value of an attribute anywhere, and each relation."""
    index: dict[str, set[int]] = {}
    for number, scene in enumerate(scenes):
        for word in [RELATION_OF[scene.layout]] + [getattr(thing, kind) for thing in scene.things for kind in KINDS]:
            index.setdefault(word, set()).add(number)
    return index


def _candidates(claims: Claims, index: dict[str, set[int]], scenes: list[Scene]) -> list[Scene]:
    """Scenes that hold every word of the claims somewhere: a superset of those they are true of, in the scenes' own order."""
    words = {relation for _, relation, _ in claims.relations}
    words |= {getattr(said, kind) for said in claims.descriptions for kind in KINDS if getattr(said, kind)}
    possible = set.intersection(*(index.get(word, set()) for word in words))
    return [scenes[number] for number in sorted(possible)]

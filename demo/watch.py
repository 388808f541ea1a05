"""The demo's retention set: scenes of the past world in the look and the words that base was mostly pre-trained on."""

import random

from demo.drawing import draw
from demo.manifest import FAMILY_SIZES, SEED, Row, normalised
from demo.phrases import caption
from demo.scenes import Scene, random_family
from demo.truth import full_claims

NUM_IMAGES = 200
CAPTIONS_PER_IMAGE = 2
SPLIT = "watch"


def build_watch() -> list[Row]:
    """Build every row, the same at each call: each scene drawn once, with complete captions in the old words."""
    rng = random.Random(f"{SEED} {SPLIT}")
    scenes: dict[str, Scene] = {}
    while len(scenes) < NUM_IMAGES:
        family = random_family(rng, "past", FAMILY_SIZES["test"])
        scenes.update((scene.key, scene) for scene in family[: NUM_IMAGES - len(scenes)])
    rows = []
    for number, scene in enumerate(scenes.values()):
        said = _captions(scene, rng)
        claims = tuple(full_claims(scene) for _ in said)
        rows.append(Row(f"{SPLIT}-{number:04d}", SPLIT, scene, draw(scene, rng, "plain"), said, claims))
    return rows


def _captions(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Different ways to say all of a scene."""
    said: dict[str, str] = {}
    while len(said) < CAPTIONS_PER_IMAGE:
        text = caption(full_claims(scene), rng, "old")
        said.setdefault(normalised(text), text)
    return tuple(said.values())

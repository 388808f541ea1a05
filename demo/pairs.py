"""Pairs: true captions, random ones and near misses, from which the matcher learns."""

import random

import torch

from demo.batches import Batch
from demo.phrases import Wording, caption, partial_claims
from demo.scenes import Scene, neighbours
from demo.truth import Claims, full_claims, is_true

BOTH: tuple[Wording, Wording] = ("old", "new")
PARTIAL_SHARE, RANDOM_SHARE = 0.15, 0.4


def said_of(scene: Scene, rng: random.Random) -> tuple[str, Claims]:
    """Say something of a scene in either wording, at times leaving something out."""
    claims = partial_claims(scene, rng) if rng.random() < PARTIAL_SHARE else full_claims(scene)
    return caption(claims, rng, rng.choice(BOTH)), claims


def near_miss(scene: Scene, rng: random.Random) -> str:
    """Say something of a neighbour that is false of the scene."""
    others = neighbours(scene)
    # Order and layout are two or three of some forty steps: without this the matcher would hardly ever be asked for them.
    steps = [other for other in others if other.layout != scene.layout or set(other.things) == set(scene.things)]
    while True:
        text, claims = said_of(rng.choice(steps if rng.random() < 0.35 else others), rng)
        if not is_true(claims, scene):
            return text


def other_caption(batch: Batch, place: int, rng: random.Random) -> str:
    """Say something of another scene of the batch that is false of this one."""
    scene = batch.scenes[place]
    text, claims = said_of(batch.scenes[(place + rng.randrange(1, len(batch.scenes))) % len(batch.scenes)], rng)
    return near_miss(scene, rng) if is_true(claims, scene) else text


def match_pairs(batch: Batch, rng: random.Random) -> tuple[list[str], torch.Tensor]:
    """For each image a true caption, a near miss, and either another or another image's caption: 3 * B captions and int64 labels."""
    true = [said_of(scene, rng)[0] for scene in batch.scenes]
    near = [near_miss(scene, rng) for scene in batch.scenes]
    last = [other_caption(batch, i, rng) if rng.random() < RANDOM_SHARE else near_miss(scene, rng) for i, scene in enumerate(batch.scenes)]
    labels_N = torch.zeros(3 * len(true), dtype=torch.long)
    labels_N[: len(true)] = 1
    return true + near + last, labels_N

"""Pairs: true captions, random ones and near misses, from which the BLIP learns."""

import random
from dataclasses import dataclass

import torch

from demo.batches import Batch
from demo.phrases import Wording, caption, partial_claims
from demo.scenes import Scene, neighbours
from demo.slots import ABSENT, slot_targets
from demo.truth import Claims, full_claims, is_true

BOTH: tuple[Wording, Wording] = ("old", "new")
PARTIAL_SHARE, RANDOM_SHARE = 0.15, 0.6


@dataclass(frozen=True)
class Saying:
    """A caption, what it claims, and the scene it tells everything about; None where it leaves something out."""

    text: str
    claims: Claims
    scene: Scene | None


def said_of(scene: Scene, rng: random.Random) -> Saying:
    """Say something of a scene in either wording, at times leaving something out."""
    full = full_claims(scene)
    claims = partial_claims(scene, rng) if rng.random() < PARTIAL_SHARE else full
    return Saying(caption(claims, rng, rng.choice(BOTH)), claims, scene if claims == full else None)


def near_miss(scene: Scene, rng: random.Random) -> Saying:
    """Say something of a neighbour that is false of the scene."""
    others = neighbours(scene)
    # Order and layout are two or three of some forty steps: without this they would hardly ever be trained on.
    steps = [other for other in others if other.layout != scene.layout or set(other.things) == set(scene.things)]
    while True:
        said = said_of(rng.choice(steps if rng.random() < 0.35 else others), rng)
        if not is_true(said.claims, scene):
            return said


def random_miss(batch: Batch, place: int, rng: random.Random) -> Saying:
    """Say something of another scene of the batch that is false of this one."""
    scene = batch.scenes[place]
    said = said_of(batch.scenes[(place + rng.randrange(1, len(batch.scenes))) % len(batch.scenes)], rng)
    return near_miss(scene, rng) if is_true(said.claims, scene) else said


def match_pairs(batch: Batch, rng: random.Random) -> tuple[list[Saying], torch.Tensor]:
    """For each image a true caption, a near miss, and another miss, near or random: 3 * B sayings and int64 labels_N."""
    true = [said_of(scene, rng) for scene in batch.scenes]
    near = [near_miss(scene, rng) for scene in batch.scenes]
    last = [random_miss(batch, i, rng) if rng.random() < RANDOM_SHARE else near_miss(scene, rng) for i, scene in enumerate(batch.scenes)]
    labels_N = torch.zeros(3 * len(true), dtype=torch.long)
    labels_N[: len(true)] = 1
    return true + near + last, labels_N


def told_targets(sayings: list[Saying]) -> torch.Tensor:
    """What each saying tells (see ``demo.slots``): int64 targets_NS, ABSENT throughout where it leaves something out."""
    told_NS = slot_targets([saying.scene or Scene("row", ()) for saying in sayings])
    told_NS[[saying.scene is None for saying in sayings]] = ABSENT
    return told_NS


def mismatches(scenes: list[Scene], sayings: list[Saying]) -> torch.Tensor:
    """In which answers (see ``demo.slots``) a saying's scene differs from its image's: int64 targets_NS of 0, 1, or ABSENT if unsaid."""
    shown_NS = slot_targets([scenes[number % len(scenes)] for number in range(len(sayings))])
    told_NS = slot_targets([saying.scene or scenes[0] for saying in sayings])
    differs_NS = (shown_NS != told_NS).long()
    differs_NS[[saying.scene is None for saying in sayings]] = ABSENT
    return differs_NS

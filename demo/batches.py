"""Batches for pre-training: scenes of the past world, drawn and captioned anew each time, half of them in families of near-duplicates.

Shapes: B images of a batch, C=3 channels, H=W=64 pixels.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from demo.drawing import Look, Placement, draw_and_place
from demo.phrases import Wording, complete_caption
from demo.scenes import Scene, World, random_family, random_scene

FAMILY_SIZE = 4
LOOK_OF: dict[Wording, Look] = {"old": "plain", "new": "busy"}


@dataclass(frozen=True)
class Batch:
    """Drawn scenes with one complete caption each, and where their things stand."""

    scenes: list[Scene]
    images: list[Image.Image]
    placements: list[list[Placement]]
    captions: list[str]


def random_batch(rng: random.Random, num_images: int, wordings: tuple[Wording, ...], world: World = "past") -> Batch:
    """Draw ``num_images`` different scenes of the world; each takes one of the wordings, and the look that belongs to it."""
    scenes: dict[str, Scene] = {}
    while len(scenes) < num_images:
        family = random_family(rng, world, FAMILY_SIZE) if len(scenes) < num_images // 2 else [random_scene(rng, world)]
        scenes.update((scene.key, scene) for scene in family[: num_images - len(scenes)])
    chosen = [rng.choice(wordings) for _ in scenes]
    pairs = list(zip(scenes.values(), chosen, strict=True))
    drawings = [draw_and_place(scene, rng, LOOK_OF[wording]) for scene, wording in pairs]
    captions = [complete_caption(scene, rng, wording) for scene, wording in pairs]
    return Batch(list(scenes.values()), [image for image, _ in drawings], [places for _, places in drawings], captions)


def pixels(images: list[Image.Image], mean: list[float], std: list[float]) -> torch.Tensor:
    """Scale 64x64 RGB images as the processors do (no resizing is due): float32 pixels_BCHW."""
    pixels_BHWC = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
    return ((pixels_BHWC - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).contiguous()

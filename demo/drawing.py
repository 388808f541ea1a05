"""Drawings: a scene at 64x64, in the plain look that base was mostly pre-trained on or in the busier look of the job's own data."""

import math
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from demo.scenes import Scene, Thing

Look = Literal["plain", "busy"]

SIDE = 64
OVERSAMPLING = 2
RADII = {"large": 9.0, "small": 5.2}
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 30),
    "orange": (250, 140, 10),
    "yellow": (245, 230, 30),
    "green": (30, 160, 50),
    "blue": (30, 70, 220),
    "purple": (140, 40, 170),
    "white": (255, 255, 255),
    "black": (5, 5, 5),
}
# Where the things of a scene stand along its line, in pixels.
STATIONS = {2: (19.0, 45.0), 3: (11.0, 32.0, 53.0)}


@dataclass(frozen=True)
class Placement:
    """Where and how one thing is drawn: centre and radius in pixels, tilt in radians, RGB."""

    thing: Thing
    x: float
    y: float
    radius: float
    tilt: float
    rgb: tuple[int, int, int]


def place(scene: Scene, rng: random.Random, look: Look) -> list[Placement]:
    """Choose where each thing of a scene stands, with jitter too small to blur any relation."""
    num_things = len(scene.things)
    wander = 3.0 if num_things == 2 else 1.0
    across = SIDE / 2 + rng.uniform(-14, 14)
    placements = []
    for thing, station in zip(scene.things, STATIONS[num_things], strict=True):
        along, aside = station + rng.uniform(-wander, wander), across + rng.uniform(-2, 2)
        x, y = (along, aside) if scene.layout == "row" else (aside, along)
        radius = RADII[thing.size] * rng.uniform(0.93, 1.07)
        tilt = rng.uniform(-0.15, 0.15) if look == "busy" else 0.0
        shift = 22 if look == "busy" else 4
        placements.append(Placement(thing, x, y, radius, tilt, _shade(PALETTE[thing.colour], rng, shift)))
    return placements


def draw(scene: Scene, rng: random.Random, look: Look) -> Image.Image:
    """Draw a scene: an RGB image of 64x64 pixels; the same state of ``rng`` gives the same picture."""
    return draw_and_place(scene, rng, look)[0]


def draw_and_place(scene: Scene, rng: random.Random, look: Look) -> tuple[Image.Image, list[Placement]]:
    """Draw a scene as :func:`draw` does, and tell where each of its things stands, in the scene's order."""
    canvas = _background(rng, look)
    pen = ImageDraw.Draw(canvas)
    placements = place(scene, rng, look)
    for placement in placements:
        _fill(pen, placement)
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX), placements


def _shade(rgb: tuple[int, int, int], rng: random.Random, shift: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-shift, shift))) for value in rgb)
    return red, green, blue


def _background(rng: random.Random, look: Look) -> Image.Image:
    side = SIDE * OVERSAMPLING
    if look == "plain":
        level = rng.randint(165, 205)
        return Image.new("RGB", (side, side), _shade((level, level, level), rng, 6))
    level = rng.randint(85, 165)
    first = _shade((level, level, level), rng, 25)
    second = _shade(first, rng, 28)
    canvas = Image.new("RGB", (side, side), first)
    pen = ImageDraw.Draw(canvas)
    pattern, pitch = rng.choice(("bars", "rungs", "checks", "halves")), rng.choice((8, 16, 32))
    if pattern == "halves":
        edge = rng.randrange(side // 4, 3 * side // 4)
        pen.rectangle((0, edge, side, side) if rng.random() < 0.5 else (edge, 0, side, side), fill=second)
        return canvas
    for x in range(0, side, pitch):
        for y in range(0, side, pitch):
            odd = {"bars": x, "rungs": y, "checks": x + y}[pattern] // pitch % 2
            if odd:
                pen.rectangle((x, y, x + pitch - 1, y + pitch - 1), fill=second)
    return canvas


def _fill(pen: ImageDraw.ImageDraw, placement: Placement) -> None:
    outline = [
        (
            (placement.x + placement.radius * (dx * math.cos(placement.tilt) - dy * math.sin(placement.tilt))) * OVERSAMPLING,
            (placement.y + placement.radius * (dx * math.sin(placement.tilt) + dy * math.cos(placement.tilt))) * OVERSAMPLING,
        )
        for dx, dy in OUTLINES[placement.thing.shape]
    ]
    pen.polygon(outline, fill=placement.rgb)


def _ring(num_points: int, *radii: float, start: float = -math.pi / 2) -> list[tuple[float, float]]:
    turns = [start + 2 * math.pi * point / num_points for point in range(num_points)]
    return [(radii[i % len(radii)] * math.cos(turn), radii[i % len(radii)] * math.sin(turn)) for i, turn in enumerate(turns)]


def _cross(arm: float, half: float) -> list[tuple[float, float]]:
    corner = [(half, -arm), (half, -half), (arm, -half)]
    turned = [[(x, y), (-y, x), (-x, -y), (y, -x)] for x, y in corner]
    return [turned[point][quarter] for quarter in range(4) for point in range(3)]


# Outlines around (0, 0) for radius 1; the centre of each lies inside it.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _ring(32, 1.0),
    "square": _ring(4, 1.25, start=-math.pi / 4),
    "triangle": _ring(3, 1.3),
    "star": _ring(10, 1.3, 0.5),
    "diamond": _ring(4, 1.25),
    "cross": _cross(1.1, 0.36),
}

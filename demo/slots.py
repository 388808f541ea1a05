"""Slots: what a tower should be able to tell of a scene, as an additional target of pre-training; the heads are thrown away.

Shapes: B scenes, F features, S questions. Of a whole scene: the layout, the number of things, then size, colour and shape of each of three
places. Of a patch of a drawing: whether a thing covers it, and its size, colour and shape.
"""

import torch
from torch import nn

from demo.drawing import SIDE, Placement
from demo.scenes import KINDS, LAYOUTS, Scene

NUM_PLACES = 3
ABSENT = -100
# Layout, number of things less two, then each attribute of each place.
SCENE_ANSWERS = [len(LAYOUTS), 2] + [len(values) for _ in range(NUM_PLACES) for values in KINDS.values()]
PATCH_ANSWERS = [2] + [len(values) for values in KINDS.values()]


class SlotHead(nn.Module):
    """Linear answers to every question from one feature vector."""

    def __init__(self, num_features: int, num_answers: list[int]) -> None:
        super().__init__()
        self.num_answers = num_answers
        self.answers = nn.Linear(num_features, sum(num_answers))

    def forward(self, features_BF: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
        """Sum over the questions of the mean cross-entropy among rows that have an answer: a float32 scalar."""
        split = self.answers(features_BF).split(self.num_answers, dim=1)
        losses = []
        for question, logits in enumerate(split):
            targets_B = targets_BS[:, question]
            total = nn.functional.cross_entropy(logits, targets_B, ignore_index=ABSENT, reduction="sum")
            losses.append(total / (targets_B != ABSENT).sum().clamp(min=1))
        return torch.stack(losses).sum()


def slot_targets(scenes: list[Scene]) -> torch.Tensor:
    """The right answers as int64 targets_BS, ABSENT where a scene has no such place."""
    return torch.tensor([_answers(scene) for scene in scenes])


def _answers(scene: Scene) -> list[int]:
    answers = [LAYOUTS.index(scene.layout), len(scene.things) - 2]
    for thing in scene.things:
        answers += [values.index(getattr(thing, kind)) for kind, values in KINDS.items()]
    return answers + [ABSENT] * (len(SCENE_ANSWERS) - len(answers))


def patch_targets(placements: list[list[Placement]], patch: int) -> torch.Tensor:
    """The right answers for each square patch of each drawing, row by row, as int64 targets_NS, N = B times patches of a drawing.

    A thing covers the patches whose centre lies within its radius; where none does, its attributes are ABSENT.
    """
    per_side = SIDE // patch
    targets_BHWS = torch.full((len(placements), per_side, per_side, len(PATCH_ANSWERS)), ABSENT)
    targets_BHWS[..., 0] = 0
    middles = (torch.arange(per_side) + 0.5) * patch
    for number, things in enumerate(placements):
        for placed in things:
            far_HW = (middles[None, :] - placed.x) ** 2 + (middles[:, None] - placed.y) ** 2
            # A small thing may miss every middle: the patch under its own centre is always its own.
            covered_HW = (far_HW <= placed.radius**2) | (far_HW == far_HW.min())
            said = [values.index(getattr(placed.thing, kind)) for kind, values in KINDS.items()]
            targets_BHWS[number, covered_HW] = torch.tensor([1, *said])
    return targets_BHWS.flatten(0, 2)

"""Slots: what a tower should be able to tell of a scene, as an additional target of pre-training; the heads are thrown away.

Shapes: B scenes, F features, S questions: the layout, the number of things, then size, colour and shape of each of three places.
"""

import torch
from torch import nn

from demo.scenes import KINDS, LAYOUTS, Scene

NUM_PLACES = 3
ABSENT = -100
# Layout, number of things less two, then each attribute of each place.
NUM_ANSWERS = [len(LAYOUTS), 2] + [len(values) for _ in range(NUM_PLACES) for values in KINDS.values()]


class SlotHead(nn.Module):
    """Linear answers to every question from one feature vector."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.answers = nn.Linear(num_features, sum(NUM_ANSWERS))

    def forward(self, features_BF: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the questions that have an answer: a float32 scalar."""
        split = self.answers(features_BF).split(NUM_ANSWERS, dim=1)
        losses = [
            nn.functional.cross_entropy(logits, targets_BS[:, i], ignore_index=ABSENT, reduction="sum") for i, logits in enumerate(split)
        ]
        return torch.stack(losses).sum() / (targets_BS != ABSENT).sum()


def slot_targets(scenes: list[Scene]) -> torch.Tensor:
    """The right answers as int64 targets_BS, ABSENT where a scene has no such place."""
    return torch.tensor([_answers(scene) for scene in scenes])


def _answers(scene: Scene) -> list[int]:
    answers = [LAYOUTS.index(scene.layout), len(scene.things) - 2]
    for thing in scene.things:
        answers += [values.index(getattr(thing, kind)) for kind, values in KINDS.items()]
    return answers + [ABSENT] * (len(NUM_ANSWERS) - len(answers))

"""The mean of several models' weights: of all in a uniform soup, of those that do not lower its score in a greedy one.

Source: Wortsman et al. 2022, arXiv 2203.05482, section 2 and algorithm 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

StateDict = Mapping[str, torch.Tensor]


class RunningMean:
    """The mean of the weights of models that are added one at a time; one float64 sum is in memory."""

    def __init__(self) -> None:
        self._sum: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, state: StateDict) -> None:
        """Add a model of the same architecture."""
        for name, value in state.items():
            self._sum[name] = self._sum[name].add_(value) if self._count else value.double()
        self._count += 1

    def mean_with(self, state: StateDict) -> dict[str, torch.Tensor]:
        """The mean with one more model, which is not added, float32; of that one alone its very bits."""
        if not self._count:
            return dict(state)
        return {name: ((total + state[name]) / (self._count + 1)).float() for name, total in self._sum.items()}


@dataclass(frozen=True)
class Trial:
    """One step of the greedy algorithm: one ingredient tried.

    Attributes:
        ingredient: index of the one that was tried.
        members: of the soup before, in the order in which they came.
        before, score: of the soup without it and with it.
    """

    ingredient: int
    members: tuple[int, ...]
    before: float
    score: float

    @property
    def kept(self) -> bool:
        """Whether it stays in the soup: it does not lower the score."""
        return self.score >= self.before


def greedy(alone: Sequence[float], score: Callable[[tuple[int, ...]], float]) -> tuple[tuple[int, ...], list[Trial]]:
    """(members of the greedy soup, every trial): the best alone first, then each of the others, best first, kept if it does not lower it.

    Args:
        alone: score of each ingredient; equal ones are tried in the order given.
        score: of the soup of some ingredients, the last of them on trial.
    """
    first, *others = sorted(range(len(alone)), key=lambda index: -alone[index])
    members: tuple[int, ...] = (first,)
    best, trials = alone[first], list[Trial]()
    for index in others:
        trial = Trial(index, members, best, score((*members, index)))
        trials.append(trial)
        if trial.kept:
            members, best = (*members, index), trial.score
    return members, trials

"""The mean of several models' weights: of all in a uniform soup, of those that do not lower its score in a greedy one.

Source: Wortsman et al. 2022, arXiv 2203.05482, section 2 and algorithm 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

StateDict = Mapping[str, torch.Tensor]


class RunningMean:
    """The mean of the weights of models that are added one at a time; one float64 sum is in memory.

    Attributes:
        count: models added.
    """

    def __init__(self) -> None:
        self._sum: dict[str, torch.Tensor] = {}
        self.count = 0

    def add(self, state: StateDict) -> None:
        """Add a model.

        Raises:
            ValueError: its weights have other names or shapes than those before.
        """
        if not self.count:
            self._sum = {name: value.detach().to(torch.float64, copy=True) for name, value in state.items()}
        else:
            self._check(state)
            for name, total in self._sum.items():
                total += state[name].detach()
        self.count += 1

    def mean(self) -> dict[str, torch.Tensor]:
        """The mean of those added, float32."""
        return {name: (total / self.count).float() for name, total in self._sum.items()}

    def mean_with(self, state: StateDict) -> dict[str, torch.Tensor]:
        """The mean with one more model, which is not added, float32.

        Raises:
            ValueError: as `add`.
        """
        if not self.count:
            return {name: value.detach().float() for name, value in state.items()}
        self._check(state)
        return {name: ((total + state[name].detach()) / (self.count + 1)).float() for name, total in self._sum.items()}

    def _check(self, state: StateDict) -> None:
        shapes, others = ({name: tuple(value.shape) for name, value in part.items()} for part in (self._sum, state))
        if shapes != others:
            differing = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
            raise ValueError(f"two different models; differing weights: {differing[:5]}")


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

"""Is a system better than another? Differences over training seeds and over images, corrected for the number of systems asked about.

A difference is taken within a seed: both systems start from the same weights and see the images in the same order. Over seeds: mean and
Student's t, for another training run; over images: bootstrap of all seeds together (eval/metrics/comparison.py), for other test images.
Shape letters: N seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics.significance import LEVEL, holm


@dataclass(frozen=True)
class OverSeeds:
    """Mean difference over seeds, its 95% interval, and two-sided p of no difference; interval and p are None of a single seed."""

    mean: float
    ci95: tuple[float, float] | None
    p_value: float | None

    @classmethod
    def of(cls, differences_N: Sequence[float]) -> "OverSeeds":
        """By Student's t with N - 1 degrees of freedom."""
        count, mean = len(differences_N), float(np.mean(differences_N))
        if count < 2:
            return cls(mean, None, None)
        error = float(np.std(differences_N, ddof=1)) / math.sqrt(count)
        half = t_quantile(1 - LEVEL / 2, count - 1) * error
        p_value = (1.0 if mean == 0 else 0.0) if error == 0 else 2 * (1 - t_probability(abs(mean) / error, count - 1))
        return cls(mean, (mean - half, mean + half), p_value)


def t_probability(t: float, degrees: int) -> float:
    """Probability that Student's t with so many degrees of freedom is at most t (t >= 0): the integral of its density, in closed form.

    Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, in the angle atan(t / sqrt(degrees)).

    >>> round(t_probability(12.7062, 1), 4), round(t_probability(2.2281, 10), 4)
    (0.975, 0.975)
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2


def t_quantile(probability: float, degrees: int) -> float:
    """The value that Student's t stays below with this probability (at least 0.5), by bisection."""
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < probability else (low, middle)
    return high


def verdicts(over_seeds: Sequence[OverSeeds], over_images: Sequence[tuple[float, float]]) -> list[str]:
    """'better', 'worse' or 'no evidence' of each system.

    The first two where the p over seeds, corrected for all of them (Holm), is under 0.05, and the interval over images leaves out 0 on the
    same side. One seed is no evidence.
    """
    p_values = holm(np.array([1.0 if each.p_value is None else each.p_value for each in over_seeds]))
    found = []
    for each, p_value, (low, high) in zip(over_seeds, p_values, over_images, strict=True):
        side = "better" if each.mean > 0 and low > 0 else "worse" if each.mean < 0 and high < 0 else "no evidence"
        found.append(side if p_value < LEVEL else "no evidence")
    return found

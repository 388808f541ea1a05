"""Captions that say the same in nearly the same words: grouped by one recorded rule, so that a wrong answer can be told from a wrong truth.

The rule is an equality of keys, not a similarity above a threshold: groups do not chain, half a million captions take seconds, and swapped
words ("red left of blue", "blue left of red") are never taken for one another. Shape letter: C captions.
"""

from collections.abc import Iterable

import numpy as np

from eval.captions import normalise

RULE = "equal after NFKC, lower case, no punctuation, and without a, an, the, is, are, some, there; the order of the words counts"
_LEFT_OUT = frozenset({"a", "an", "the", "is", "are", "some", "there"})


def near_duplicate_key(caption: str) -> str:
    """What near-duplicate captions share.

    >>> near_duplicate_key("There is a dog, running.")
    'dog running'
    """
    normalised = normalise(caption)
    return " ".join(word for word in normalised.split() if word not in _LEFT_OUT) or normalised


def near_duplicate_groups(captions: Iterable[str]) -> np.ndarray:
    """Group of each caption, int64 group_C, numbered from 0 by first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(near_duplicate_key(caption), len(numbers)) for caption in captions], dtype=np.int64)

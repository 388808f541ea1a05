"""When two captions are the same caption: normalised text, and a hash of it."""

import hashlib
import string
import unicodedata
from collections.abc import Iterable

import numpy as np

_ASCII_PUNCTUATION = frozenset(string.punctuation)
_STRIP_ASCII = str.maketrans("", "", string.punctuation)


def normalise(caption: str) -> str:
    """Normalised caption (docs/data.md): NFKC, lower case, punctuation stripped, blanks collapsed.

    >>> normalise("A  Dog, running .")
    'a dog running'
    """
    if caption.isascii():  # nearly every caption, and ten times as fast: NFKC leaves ASCII alone
        return " ".join(caption.lower().translate(_STRIP_ASCII).split())
    text = caption
    while (once := _normalise_once(text)) != text:  # rare characters need a second pass: "İ" lowers to two code points
        text = once
    return text


def _normalise_once(text: str) -> str:
    lowered = unicodedata.normalize("NFKC", text).lower()
    letters = "".join(c for c in lowered if c not in _ASCII_PUNCTUATION and not unicodedata.category(c).startswith("P"))
    return " ".join(unicodedata.normalize("NFKC", letters).split())


def caption_hash(caption: str) -> int:
    """Signed 64-bit hash of the normalised caption (BLAKE2b): equal captions, equal hash; 10 million captions collide with odds of 3e-6."""
    return int.from_bytes(hashlib.blake2b(normalise(caption).encode(), digest_size=8).digest(), "little", signed=True)


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

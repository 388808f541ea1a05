"""When two captions are the same caption: normalised text, and a hash of it."""

import hashlib
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

_ASCII_PUNCTUATION = frozenset(string.punctuation)
_ASCII_LOWER = bytes(range(0x1C)) + b" " * 4 + bytes(range(0x20, 0x100)).lower()
"""Each byte in lower case; the four separators of files, groups, records and units, which are blanks to `str.split`, as spaces."""
_ASCII_STRIPPED = string.punctuation.encode()
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""What shows nothing and is no blank: Default_Ignorable_Code_Point of Unicode 17.0's DerivedCoreProperties.txt (zero-width space, joiners,
soft hyphen, byte order mark, variation selectors, marks of direction, tags); the same 4,174 code points since 14.0."""


def normalise(caption: str, *, keeps_marks: bool = False) -> str:
    """Normalised caption (docs/captions.md): NFKC, lower case, invisible characters dropped, punctuation stripped, blanks collapsed.

    Args:
        keeps_marks: punctuation between two digits stays ("1.5"), for a tokenizer that keeps punctuation.

    >>> normalise("A  Dog, running .")
    'a dog running'
    """
    if caption.isascii():  # nearly every caption, and ten times as fast: NFKC leaves ASCII alone
        if keeps_marks and _MARKS.search(caption):
            return " ".join(_without_punctuation(caption.lower(), keeps_marks).split())
        return b" ".join(caption.encode().translate(_ASCII_LOWER, _ASCII_STRIPPED).split()).decode()
    text = caption
    while (once := _normalise_once(text, keeps_marks)) != text:  # rare characters need a second pass: "İ" lowers to two code points
        text = once
    return text


def ascii_normalised(captions: Sequence[str]) -> list[str] | None:
    """`normalise` of many captions at once; None where one is not ASCII or holds a line's end."""
    text = "\n".join(captions)
    if not text.isascii() or text.count("\n") != len(captions) - 1:
        return None
    return [b" ".join(caption.split()).decode() for caption in text.encode().translate(_ASCII_LOWER, _ASCII_STRIPPED).split(b"\n")]


def visible(caption: str) -> str:
    """A caption without what shows nothing: invisible characters dropped, blanks collapsed."""
    return " ".join(INVISIBLE.sub("", caption).split())


def _normalise_once(text: str, keeps_marks: bool = False) -> str:
    lowered = unicodedata.normalize("NFKC", INVISIBLE.sub("", text)).lower()
    return " ".join(unicodedata.normalize("NFKC", _without_punctuation(lowered, keeps_marks)).split())


def _without_punctuation(text: str, keeps_marks: bool) -> str:
    if not keeps_marks:
        return "".join(c for c in text if not _is_punctuation(c))
    kept = {place for found in _MARKS.finditer(text) for place in range(*found.span())}
    return "".join(c for place, c in enumerate(text) if place in kept or not _is_punctuation(c))


def _is_punctuation(character: str) -> bool:
    return character in _ASCII_PUNCTUATION or unicodedata.category(character).startswith("P")


_MARKS = re.compile(r"(?<=\d)(?:[^\w\s]|_)+(?=\d)")
"""What stands between two digits; of it `_without_punctuation` keeps or strips the punctuation."""


def has_marks(caption: str) -> bool:
    """True where `keeps_marks` may make a difference: something that is no letter stands between two digits."""
    return _MARKS.search(caption if caption.isascii() else unicodedata.normalize("NFKC", INVISIBLE.sub("", caption))) is not None


def caption_hash(caption: str, *, keeps_marks: bool = False) -> int:
    """Signed 64-bit hash of the normalised caption (BLAKE2b): equal captions, equal hash; 10 million captions collide with odds of 3e-6."""
    return normalised_hash(normalise(caption, keeps_marks=keeps_marks))


def normalised_hash(text: str) -> int:
    """`caption_hash` of a caption that is normalised already."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


RULE = "equal after NFKC, lower case, no punctuation, and without a, an, the, is, are, some, there; the order of the words counts"


_LEFT_OUT = frozenset({"a", "an", "the", "is", "are", "some", "there"})


def near_duplicate_key(caption: str, *, keeps_marks: bool = False) -> str:
    """What near-duplicate captions share; keeps_marks as of `normalise`.

    >>> near_duplicate_key("There is a dog, running.")
    'dog running'
    """
    normalised = normalise(caption, keeps_marks=keeps_marks)
    return " ".join(word for word in normalised.split() if word not in _LEFT_OUT) or normalised


def near_duplicate_groups(captions: Iterable[str], *, keeps_marks: bool = False) -> np.ndarray:
    """Group of each caption, int64 group_C, numbered from 0 by first appearance; keeps_marks as of `normalise`."""
    numbers: dict[str, int] = {}
    keys = (near_duplicate_key(caption, keeps_marks=keeps_marks) for caption in captions)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)

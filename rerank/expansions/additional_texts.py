"""Further texts of items in order: which are kept, which are dropped and why.

Shape letters: N items (captions, or images).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet, StringColumn

MOST = 8
"""Further texts of one item, unless asked otherwise."""
EQUAL, TWICE, EMPTY, BEYOND = "equal to the original", "said twice", "empty", "beyond the most"
OTHERS = "equal to another caption of the set"


@dataclass(frozen=True)
class AdditionalTexts:
    """Further texts, item by item.

    Attributes:
        texts: those of item n are texts[offsets[n]:offsets[n + 1]], the most trusted first.
        offsets: int64 of shape (N + 1,).
        name: the arm's ending in a stage's name, such as "synonyms".
        source: FILE_OR_METHOD as it was asked for.
        dropped: how many were left out, by why.
        noted: how many were kept, or passed over, that a reader should know of, by what they are.
    """

    texts: Sequence[str]
    offsets: np.ndarray
    name: str
    source: str
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)

    @property
    def counts_N(self) -> np.ndarray:
        """Number of further texts of each item."""
        return np.diff(self.offsets)

    def of(self, item: int) -> list[str]:
        """Those of one item, the most trusted first."""
        return list(self.texts[int(self.offsets[item]) : int(self.offsets[item + 1])])

    def sha256(self) -> str:
        """Hash of what they say, and of what."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets, dtype=np.int64).tobytes())
        for text in self.texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What a report says of them."""
        return {
            "name": self.name,
            "source": self.source,
            "num_items": len(self.offsets) - 1,
            "num_with": int((self.counts_N > 0).sum()),
            "num_texts": len(self.texts),
            "dropped": dict(self.dropped),
            "noted": dict(self.noted),
            "sha256": self.sha256(),
        }

    def describe(self) -> str:
        """The same in a line.

        >>> CaptionExpansions(["a hound"], np.array([0, 1, 1]), "synonyms", "synonyms:d.txt", {"said twice": 3}).describe()
        'synonyms:d.txt: 1 text(s) for 1 of 2 caption(s); dropped: 3 said twice'
        """
        num_with = int((self.counts_N > 0).sum())
        parts = [f"{self.source}: {len(self.texts):,} text(s) for {num_with:,} of {len(self.offsets) - 1:,} {self.noun}(s)"]
        for title, counts in (("dropped", self.dropped), ("noted", self.noted)):
            if any(counts.values()):
                parts.append(f"{title}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items() if count))
        return "; ".join(parts)

    @property
    def noun(self) -> str:
        """What an item is called."""
        return "caption"


@dataclass(frozen=True)
class CaptionExpansions(AdditionalTexts):
    """Further texts that ask for what a caption asks for: items are the captions of a split."""


@dataclass(frozen=True)
class ImageCaptions(AdditionalTexts):
    """Further captions that say what an image shows: items are the images of a split."""

    @property
    def noun(self) -> str:
        """What an item is called."""
        return "image"


def caption_expansions(
    dataset: RetrievalSet,
    said: Iterable[Iterable[str]],
    *,
    name: str,
    source: str,
    most: int,
    noted: dict[str, int] | None = None,
    cut: bool = False,
) -> CaptionExpansions:
    """What is kept of what was said for each caption of a split, in its order.

    Args:
        cut: ask no further for a caption that has enough, so that what lies beyond is not counted: for what can be made without end.
    """
    originals = ([caption] for caption in dataset.captions)
    texts, offsets, dropped, found = _kept(dataset, originals, said, most, cut)
    return CaptionExpansions(texts, offsets, name, source, dropped, (noted or {}) | found)


def image_captions(
    dataset: RetrievalSet, said: Iterable[Iterable[str]], *, name: str, source: str, most: int, noted: dict[str, int] | None = None
) -> ImageCaptions:
    """What is kept of what was said for each image of a split, in its order."""
    texts, offsets, dropped, found = _kept(dataset, captions_of_images(dataset), said, most, cut=False)
    return ImageCaptions(texts, offsets, name, source, dropped, (noted or {}) | found)


def captions_of_images(dataset: RetrievalSet) -> Iterator[list[str]]:
    """The own captions of each image."""
    for image in range(dataset.num_images):
        yield list(dataset.captions[int(dataset.caption_offsets[image]) : int(dataset.caption_offsets[image + 1])])


def _kept(
    dataset: RetrievalSet, originals: Iterable[list[str]], said: Iterable[Iterable[str]], most: int, cut: bool
) -> tuple[Sequence[str], np.ndarray, dict[str, int], dict[str, int]]:
    """(texts, offsets, dropped, noted): of each item the first `most` texts that say something, and something new."""
    in_set = {normalise(caption) for caption in dataset.captions}
    texts: list[str] = []
    ends, dropped = [0], Counter[str]()
    num_others = 0
    for own, further in zip(originals, said, strict=True):
        own_keys = {normalise(caption) for caption in own}
        seen: set[str] = set()
        for text in further:
            key = normalise(text)
            why = EMPTY if not key else EQUAL if key in own_keys else TWICE if key in seen else BEYOND if len(seen) == most else ""
            if why:
                dropped[why] += 1
                continue
            seen.add(key)
            texts.append(text)
            num_others += key in in_set
            if cut and len(seen) == most:
                break
        ends.append(len(texts))
    return StringColumn(texts), np.array(ends, dtype=np.int64), dict(dropped), {OTHERS: num_others} if num_others else {}

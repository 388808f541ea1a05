"""Additional texts of items in order: which are used, which are dropped and why.

Shape letters: N items (captions, or images).
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import numpy as np

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet, StringColumn

MOST = 8
"""Additional texts of one item, at most."""
EQUAL, TWICE, EMPTY, BEYOND = "equal to the original", "said twice", "empty", "beyond the most"
OTHERS = "equal to another caption of the set"


@dataclass(frozen=True)
class AdditionalTexts(ABC):
    """Additional texts, item by item.

    Attributes:
        texts: those of item n are texts[offsets[n]:offsets[n + 1]], the most trusted first.
        offsets: int64 of shape (N + 1,).
        name: the ending of its stages' names, such as "synonyms".
        source: FILE_OR_METHOD as it was asked for.
        dropped: how many texts were left out, by reason.
        noted: how many texts were used, or rows skipped, that a reader should know of, by reason.
    """

    texts: Sequence[str]
    offsets: np.ndarray
    name: str
    source: str
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)

    @classmethod
    def select(
        cls,
        dataset: RetrievalSet,
        proposed: Iterable[Iterable[str]],
        *,
        name: str,
        source: str,
        noted: Mapping[str, int] = {},
        cut: bool = False,
    ) -> Self:
        """The texts that are used of those proposed for each item of a split: the first `MOST` that have words, and are new.

        Args:
            cut: stop at an item that has enough, so that texts beyond are neither made nor counted: for generators.
        """
        in_set = {normalise(caption) for caption in dataset.captions}
        texts: list[str] = []
        ends, dropped, num_others = [0], Counter[str](), 0
        for own, additional in zip(cls._originals(dataset), proposed, strict=True):
            own_keys = {normalise(caption) for caption in own}
            seen: set[str] = set()
            for text in additional:
                key = normalise(text)
                why = EMPTY if not key else EQUAL if key in own_keys else TWICE if key in seen else BEYOND if len(seen) == MOST else ""
                if why:
                    dropped[why] += 1
                    continue
                seen.add(key)
                texts.append(text)
                num_others += key in in_set
                if cut and len(seen) == MOST:
                    break
            ends.append(len(texts))
        found = {OTHERS: num_others} if num_others else {}
        return cls(StringColumn(texts), np.array(ends, dtype=np.int64), name, source, dict(dropped), {**noted, **found})

    @staticmethod
    @abstractmethod
    def _originals(dataset: RetrievalSet) -> Iterable[Sequence[str]]:
        """The captions that each item has already."""

    def of(self, item: int) -> list[str]:
        """Those of one item, the most trusted first."""
        return list(self.texts[int(self.offsets[item]) : int(self.offsets[item + 1])])

    def sha256(self) -> str:
        """Hash of the texts and of the items they belong to."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets, dtype=np.int64).tobytes())
        for text in self.texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What report.json says of them."""
        return {
            "name": self.name,
            "source": self.source,
            "num_items": len(self.offsets) - 1,
            "num_with": int((np.diff(self.offsets) > 0).sum()),
            "num_texts": len(self.texts),
            "dropped": dict(self.dropped),
            "noted": dict(self.noted),
            "sha256": self.sha256(),
        }


@dataclass(frozen=True)
class CaptionExpansions(AdditionalTexts):
    """Other wordings of captions: items are the captions of a split."""

    @staticmethod
    def _originals(dataset: RetrievalSet) -> Iterable[Sequence[str]]:
        return ([caption] for caption in dataset.captions)


@dataclass(frozen=True)
class ImageCaptions(AdditionalTexts):
    """Additional captions of images: items are the images of a split."""

    @staticmethod
    def _originals(dataset: RetrievalSet) -> Iterable[Sequence[str]]:
        every = dataset.every or dataset
        return (every.captions[start:end] for start, end in pairwise(every.caption_offsets.tolist()))

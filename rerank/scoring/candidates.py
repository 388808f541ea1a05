"""Candidate lists: the pairs that both directions need scored, as one list of captions per image.

Why per image: a cross-encoder spends most of its time on the image. With one list per image each image is encoded
once, whichever direction, stage or query needs it, and no pair is scored twice.

Shape letters: I images that have candidates, N (image, caption) pairs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eval.errors import SettingError
from eval.search.ranking import Ranking

_CAPTION_BITS = 32  # a pair as one sortable int64: the image above, the caption below


def pair_keys(image_indices_N: np.ndarray, caption_indices_N: np.ndarray) -> np.ndarray:
    """One int64 per pair, ordered as (image, caption) is; any equal shapes.

    Raises:
        ValueError: an index is negative or does not fit in 31 bits.
    """
    images_N = np.asarray(image_indices_N, dtype=np.int64)
    captions_N = np.asarray(caption_indices_N, dtype=np.int64)
    for side, indices_N in (("image", images_N), ("caption", captions_N)):
        if indices_N.size and (indices_N.min() < 0 or indices_N.max() >= 2**31):
            raise ValueError(f"{side} indices must lie in [0, 2**31); found {indices_N.min()} to {indices_N.max()}.")
    return (images_N << _CAPTION_BITS) | captions_N


@dataclass(frozen=True)
class CandidateLists:
    """For each image that has candidates, its captions; images and the captions of one image ascend, without repeats.

    Attributes:
        image_indices_I: int64, the images, ascending.
        offsets: int64, shape (I + 1,); the captions of the i-th image lie at offsets[i]:offsets[i + 1] below.
        caption_indices_N: int64, ascending within an image.
    """

    image_indices_I: np.ndarray
    offsets: np.ndarray
    caption_indices_N: np.ndarray

    @classmethod
    def of_pairs(cls, image_indices_N: np.ndarray, caption_indices_N: np.ndarray) -> "CandidateLists":
        """The lists that hold exactly these pairs, in whatever order and however often they come; int64, equal shapes."""
        return cls._of_keys(np.unique(pair_keys(image_indices_N, caption_indices_N)))

    @classmethod
    def _of_keys(cls, keys_N: np.ndarray) -> "CandidateLists":
        images_N = keys_N >> _CAPTION_BITS
        image_indices_I, starts_I = np.unique(images_N, return_index=True)
        offsets = np.append(starts_I, len(keys_N)).astype(np.int64)
        return cls(image_indices_I, offsets, keys_N & ((1 << _CAPTION_BITS) - 1))

    @property
    def num_images(self) -> int:
        """Number of images that have candidates, I."""
        return len(self.image_indices_I)

    @property
    def num_pairs(self) -> int:
        """Number of pairs, N."""
        return len(self.caption_indices_N)

    @cached_property
    def keys_N(self) -> np.ndarray:
        """The pairs as ascending int64 keys (see `pair_keys`)."""
        return pair_keys(self.image_of_pair_N, self.caption_indices_N)

    @cached_property
    def image_of_pair_N(self) -> np.ndarray:
        """int64, the image of each pair, in the order of `caption_indices_N`."""
        return np.repeat(self.image_indices_I, np.diff(self.offsets))

    def captions_of(self, position: int) -> np.ndarray:
        """int64 caption indices of the image at `position` in `image_indices_I`."""
        return self.caption_indices_N[self.offsets[position] : self.offsets[position + 1]]

    def share(self, rank: int, world_size: int) -> "CandidateLists":
        """The whole lists of this process's images: the i-th image goes to process i % world_size."""
        positions_N = np.repeat(np.arange(self.num_images), np.diff(self.offsets))
        return self._of_keys(self.keys_N[positions_N % world_size == rank])

    def union(self, *others: "CandidateLists") -> "CandidateLists":
        """Every pair of these lists, once: so that several stages (base, tuned, ...) share the pairs they need."""
        return self._of_keys(np.unique(np.concatenate([self.keys_N, *(other.keys_N for other in others)])))

    def difference(self, other: "CandidateLists") -> "CandidateLists":
        """The pairs of these lists that `other` does not hold."""
        return self._of_keys(np.setdiff1d(self.keys_N, other.keys_N, assume_unique=True))


def head_pairs(ranking: Ranking, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(image indices, caption indices) of the first `top_k` of every query; int64, both of shape (Q, top_k).

    Raises:
        SettingError: top_k is below 1 or deeper than the ranking's stored head.
    """
    if not 1 <= top_k <= ranking.depth:
        raise SettingError(
            "top_k",
            f"expected 1 to {ranking.depth}, the number of candidates the first stage kept per query in direction "
            f"{ranking.direction}; found {top_k}. Lower it, or keep a deeper first-stage list.",
        )
    gallery_QK = ranking.top_indices_QK[:, :top_k].astype(np.int64, copy=False)
    queries_QK = np.broadcast_to(np.arange(ranking.num_queries, dtype=np.int64)[:, None], gallery_QK.shape)
    return (queries_QK, gallery_QK) if ranking.direction == "image_to_text" else (gallery_QK, queries_QK)


def candidate_lists(rankings: Iterable[Ranking], top_k: int) -> CandidateLists:
    """The pairs that re-ordering the first `top_k` of every query of all these rankings needs, as one list per image.

    Give it both directions, of one stage or of several: a pair that several need appears once.

    Raises:
        UserError: top_k is below 1 or deeper than one of the rankings.
    """
    pairs = [head_pairs(ranking, top_k) for ranking in rankings]
    images_N = np.concatenate([images_QK.ravel() for images_QK, _ in pairs])
    captions_N = np.concatenate([captions_QK.ravel() for _, captions_QK in pairs])
    return CandidateLists.of_pairs(images_N, captions_N)

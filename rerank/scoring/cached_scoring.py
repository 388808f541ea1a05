"""Candidate lists and a score cache: which pairs are cached, the same on every process, and a place for what is scored now.

Shape letters: I images, C captions, N pairs, n pairs of one image, M captions of one image that have a cached score.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from eval.errors import UserError
from eval.processes import Processes
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.score_cache import DIGEST, ScoreCache, digest

_PAIRS_AT_ONCE = 1 << 20  # of which every process's scores are sent in one message


class ScoringData(Protocol):
    """What scoring needs of a data set; `eval.dataset.retrieval_set.RetrievalSet` is one."""

    @property
    def image_ids(self) -> Sequence[str]:
        """Name of each image."""

    @property
    def caption_ids(self) -> Sequence[str]:
        """Name of each caption."""

    @property
    def captions(self) -> Sequence[str]:
        """Text of each caption."""

    def load_image(self, image: int, /) -> Image.Image:
        """One image, RGB."""

    def image_digest(self, image: int, /) -> bytes:
        """SHA-256 of one image's content; called only where there is a score cache."""


class CachedScoring:
    """The lists of one scoring, their images and captions known by content."""

    def __init__(self, cache: ScoreCache, fingerprint: str, dataset: ScoringData, lists: CandidateLists, processes: Processes) -> None:
        """Reads every image's file once, the processes sharing them out. Call on every process.

        Raises:
            UserError: on every process: the cache or an image cannot be read on some.
        """
        self._dataset, self._lists, self._processes = dataset, lists, processes
        images_I = lists.image_indices_I
        with processes.jointly():
            self._database = cache.database(fingerprint)
            mine = [self._image_digest(int(image)) for image in images_I[processes.rank :: processes.world_size]]
        digests_I = np.empty(len(images_I), dtype=DIGEST)
        for rank, part in enumerate(processes.gather(np.array(mine, dtype=DIGEST))):
            digests_I[rank :: processes.world_size] = part
        whole = digests_I.tobytes()
        self._images = [whole[start : start + DIGEST.itemsize] for start in range(0, len(whole), DIGEST.itemsize)]
        self._captions_C = np.unique(lists.caption_indices_N)
        texts = (dataset.captions[int(caption)].encode("utf-8", "surrogatepass") for caption in self._captions_C)
        self._digests_C = np.array([digest(text) for text in texts], dtype=DIGEST)

    def known(self) -> tuple[CandidateLists, np.ndarray]:
        """The pairs that some process's cache holds, and the score of each, float32; the same on every process.

        Raises:
            UserError: on every process: the cache cannot be read on some.
        """
        images_N, captions_N, offsets = self._lists.image_of_pair_N, self._lists.caption_indices_N, self._lists.offsets
        found_N, scores_N = np.zeros(len(captions_N), dtype=bool), np.zeros(len(captions_N), dtype=np.float32)
        with self._processes.jointly():
            digests_N = self._caption_digests(captions_N)
            for position, (cached_M, scores_M) in enumerate(self._database.read(self._images)):
                own = slice(offsets[position], offsets[position + 1])
                if len(cached_M):
                    found_N[own], scores_N[own] = _lookup(digests_N[own], cached_M, scores_M)
        if self._processes.world_size > 1:
            found_N, scores_N = _first_found(found_N, scores_N, self._processes)
        return CandidateLists.of_pairs(images_N[found_N], captions_N[found_N]), scores_N[found_N]

    def write(self, image: int, captions_n: np.ndarray, scores_n: np.ndarray) -> None:
        """Cache the scores of one image now.

        Raises:
            UserError: the image is no longer what it was: nobody knows which of the two was scored.
            WriteError: there is no room.
        """
        expected = self._images[int(np.searchsorted(self._lists.image_indices_I, image))]
        if self._image_digest(image) != expected:
            raise UserError(
                f"image {self._dataset.image_ids[image]!r}: its file was changed while it was scored, so its scores are of no use. "
                "Run the same command again, once nothing writes to the images"
            )
        self._database.write(expected, self._caption_digests(captions_n), scores_n)

    def _image_digest(self, image: int) -> bytes:
        return self._dataset.image_digest(image)[: DIGEST.itemsize]

    def _caption_digests(self, captions_N: np.ndarray) -> np.ndarray:
        return self._digests_C[np.searchsorted(self._captions_C, captions_N)]


def _lookup(digests_n: np.ndarray, cached_M: np.ndarray, scores_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(is it cached, its score) of each caption of one image, bool and float32 of shape (n,); of one that is there twice, the first."""
    order_M = np.argsort(cached_M, kind="stable")
    places_n = order_M[np.minimum(np.searchsorted(cached_M, digests_n, sorter=order_M), len(cached_M) - 1)]
    found_n = cached_M[places_n] == digests_n
    return found_n, np.where(found_n, scores_M[places_n], np.float32(0))


def _first_found(found_N: np.ndarray, scores_N: np.ndarray, processes: Processes) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair what the first process found that has it cached, on every process. Caches of machines without a shared disk differ."""
    first_N, from_N = np.zeros(len(found_N), dtype=np.float32), np.full(len(found_N), -1, dtype=np.int32)
    for rank, bits in enumerate(processes.gather(np.packbits(found_N))):
        from_N[(from_N < 0) & np.unpackbits(bits, count=len(found_N)).astype(bool)] = rank
    for start in range(0, len(found_N), _PAIRS_AT_ONCE):
        block = slice(start, start + _PAIRS_AT_ONCE)
        for rank, part in enumerate(processes.gather(scores_N[block][from_N[block] == processes.rank])):
            first_N[block][from_N[block] == rank] = part
    return from_N >= 0, first_N

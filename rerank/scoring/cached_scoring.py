"""Candidate lists against a store of kept scores: which pairs are known, on every process alike, and what is scored now is kept.

Shape letters: I images, C captions, N pairs, n pairs of one image.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from eval.errors import UserError
from eval.processes import Processes
from rerank.scoring.cache_file import digest_words
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.score_cache import KeptScores, PairStore, pair_words

_PAIRS_AT_ONCE = 1 << 20  # of which every process's scores travel in one message


class DigestedData(Protocol):
    """What keeping reads of a data set."""

    @property
    def image_ids(self) -> Sequence[str]:
        """Name of each image."""

    @property
    def captions(self) -> Sequence[str]:
        """Text of each caption."""

    def image_digest(self, image: int, /) -> bytes:
        """SHA-256 of what one picture holds."""


class Keeping:
    """The lists of one scoring, their pictures and captions known by content."""

    def __init__(self, store: PairStore, fingerprint: str, dataset: DigestedData, lists: CandidateLists, processes: Processes) -> None:
        """Reads every picture's file once, the processes sharing them out. Call on every process.

        Raises:
            UserError: on every process: the store or a picture cannot be read on some.
        """
        self._dataset, self._lists, self._processes = dataset, lists, processes
        images_I = lists.image_indices_I
        with processes.jointly():
            self._kept: KeptScores = store.of(fingerprint)
            mine = [digest_words(dataset.image_digest(int(image))) for image in images_I[processes.rank :: processes.world_size]]
        self._image_I2 = np.empty((len(images_I), 2), dtype=np.uint64)
        for rank, part in enumerate(processes.gather(np.array(mine, dtype=np.uint64).reshape(-1, 2))):
            self._image_I2[rank :: processes.world_size] = part
        self._captions_C = np.unique(lists.caption_indices_N)
        texts = (dataset.captions[int(caption)].encode("utf-8", "surrogatepass") for caption in self._captions_C)
        self._caption_C2 = np.array([digest_words(hashlib.sha256(text).digest()) for text in texts], dtype=np.uint64).reshape(-1, 2)

    def known(self) -> tuple[CandidateLists, np.ndarray]:
        """The pairs that some process's store knows and their scores, float32 beside them; the same on every process."""
        images_N, captions_N = self._lists.image_of_pair_N, self._lists.caption_indices_N
        found_N, scores_N = self._kept.find(self._words(images_N, captions_N))
        if self._processes.world_size > 1:
            found_N, scores_N = _agreed(found_N, scores_N, self._processes)
        return CandidateLists.of_pairs(images_N[found_N], captions_N[found_N]), scores_N[found_N]

    def keep(self, image: int, captions_n: np.ndarray, scores_n: np.ndarray) -> None:
        """Write what was said of one image now.

        Raises:
            UserError: the picture is no longer what it was: nobody knows which of the two was scored.
            WriteError: there is no room.
        """
        image_2 = self._image_I2[np.searchsorted(self._lists.image_indices_I, image)]
        if not np.array_equal(digest_words(self._dataset.image_digest(image)), image_2):
            raise UserError(
                f"image {self._dataset.image_ids[image]!r}: its file was changed while it was scored, so its scores are of no use. "
                "Run the same command again, once nothing writes to the pictures"
            )
        self._kept.append(image_2, self._caption_words(captions_n), scores_n)

    def finish(self, lists: CandidateLists, scores_N: np.ndarray) -> None:
        """Know what this process has kept, and see that it outlives a power cut.

        Raises:
            WriteError: the disk fails.
        """
        self._kept.add(self._words(lists.image_of_pair_N, lists.caption_indices_N), scores_N)
        self._kept.sync()

    def _caption_words(self, captions_N: np.ndarray) -> np.ndarray:
        return self._caption_C2[np.searchsorted(self._captions_C, captions_N)]

    def _words(self, images_N: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
        return pair_words(self._image_I2[np.searchsorted(self._lists.image_indices_I, images_N)], self._caption_words(captions_N))


def _agreed(found_N: np.ndarray, scores_N: np.ndarray, processes: Processes) -> tuple[np.ndarray, np.ndarray]:
    """What the first process that knows a pair says of it, on every process. Stores of machines without a shared disk differ."""
    agreed_N, from_N = np.zeros(len(found_N), dtype=np.float32), np.full(len(found_N), -1, dtype=np.int32)
    for rank, bits in enumerate(processes.gather(np.packbits(found_N))):
        from_N[(from_N < 0) & np.unpackbits(bits, count=len(found_N)).astype(bool)] = rank
    for start in range(0, len(found_N), _PAIRS_AT_ONCE):
        block = slice(start, start + _PAIRS_AT_ONCE)
        for rank, part in enumerate(processes.gather(scores_N[block][from_N[block] == processes.rank])):
            agreed_N[block][from_N[block] == rank] = part
    return from_N >= 0, agreed_N

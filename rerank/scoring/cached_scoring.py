"""Candidate lists and a score cache: which pairs are cached, the same on every process, and a place for what is scored now.

Shape letters: I images, C captions, N pairs, n pairs of one image, M captions of one image that have a cached score.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, Queue
from threading import Thread
from typing import Any, Protocol

import numpy as np
from PIL import Image

from eval.errors import UserError
from eval.processes import Processes
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.score_cache import DIGEST, ImageList, ScoreCache, ScoreDatabase, digest

_PAIRS_AT_ONCE = 1 << 20  # of which every process's scores are sent in one message


_MOST_WAITING = 64  # images' lists: where the disk is slower for so long, the device waits for it


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

    @contextmanager
    def writing(self, *, late: bool) -> Iterator[Callable[[int, np.ndarray, np.ndarray], None]]:
        """What caches the scores of an image, given its index, captions and scores.

        Args:
            late: by a thread, all that waits at once, so that a device need not wait for the disk; all is written when this ends. Else now.

        Raises:
            UserError: an image is no longer what it was: nobody knows which of the two was scored.
            WriteError: there is no room.
        """
        if not late:
            yield lambda *scored: self._database.write_lists([self._list(*scored)])
            return
        waiting, faults = Queue[ImageList | None](_MOST_WAITING), list[Exception]()
        thread = Thread(target=_write_late, args=(self._database, waiting, faults), daemon=True)

        def write(*scored: Any) -> None:
            if faults:
                raise faults[0]
            if not thread.is_alive():  # not before the workers were forked
                thread.start()
            waiting.put(self._list(*scored))

        try:
            yield write
        finally:
            if thread.is_alive():
                waiting.put(None)
                thread.join()
        if faults:
            raise faults[0]

    def _list(self, image: int, captions_n: np.ndarray, scores_n: np.ndarray) -> ImageList:
        expected = self._images[int(np.searchsorted(self._lists.image_indices_I, image))]
        if self._image_digest(image) != expected:
            raise UserError(
                f"image {self._dataset.image_ids[image]!r}: its file was changed while it was scored, so its scores are of no use. "
                "Run the same command again, once nothing writes to the images"
            )
        return ImageList(expected, self._caption_digests(captions_n), scores_n)

    def _image_digest(self, image: int) -> bytes:
        return self._dataset.image_digest(image)[: DIGEST.itemsize]

    def _caption_digests(self, captions_N: np.ndarray) -> np.ndarray:
        return self._digests_C[np.searchsorted(self._captions_C, captions_N)]


def _write_late(database: ScoreDatabase, waiting: "Queue[ImageList | None]", faults: list[Exception]) -> None:
    """Write what comes until None does; after a fault nothing more."""
    goes_on = True
    while goes_on:
        lists = [waiting.get()]
        with suppress(Empty):
            while lists[-1] is not None:
                lists.append(waiting.get_nowait())
        goes_on = lists[-1] is not None
        try:
            if not faults and (come := [one for one in lists if one is not None]):
                database.write_lists(come)
        except Exception as error:  # told by the thread that scores
            faults.append(error)


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

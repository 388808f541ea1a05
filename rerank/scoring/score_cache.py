"""Pair scores kept on disk: what a scorer once said of a picture and a caption is not asked again, by this run or by another.

FOLDER/FINGERPRINT/TOKEN.pairs: a folder for each scorer with its settings (see `PairScorer.fingerprint`), a segment for each process that
scored something (rerank/scoring/cache_file.py). A pair is known by what its picture and its caption hold, not by their names: an edited
picture
is another picture. A segment is written by the one process that made it and never changed by another, so any number of processes and jobs
may use a folder at once; a file or the whole folder may be deleted whenever no job runs.

Segments are not merged. A run that scores nothing new writes none, one that does writes one per process, and a thousand of them are read
in a fraction of the time that importing torch takes (docs/reranking.md has the figure). Merging would have to delete what another job,
perhaps on another machine, is reading or writing.

Shape letters: N pairs, R records.
"""

import os
import secrets
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import WriteError, reading
from rerank.scoring.cache_file import RECORD, list_records, read_segment

_REMEDY = "Or name another folder, or keep none: --pair-scores FOLDER, --no-pair-scores; in a job rerank.pair_scores: FOLDER, or false."
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: picture and caption with the same content do not trade places


def pair_words(image_N2: np.ndarray, caption_N2: np.ndarray) -> np.ndarray:
    """128 bits that stand for a pair, uint64 of shape (N, 2), from the digest words of its picture and of its caption."""
    words_N2: np.ndarray = np.asarray(image_N2) * _MIX + np.asarray(caption_N2)
    return words_N2


class KeptScores:
    """The kept scores of one scorer, as they stood when they were read and with what this process added: 20 bytes of memory each.

    Attributes:
        num_damaged: records passed over because they, or others of their list, were damaged or cut short.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError when what is there cannot be read."""
        self.folder, self._segment = folder, -1
        sizes = {path: path.stat().st_size for path in sorted(folder.glob("*.pairs"))}  # what another job writes from now on is left
        most = sum(size // RECORD.itemsize for size in sizes.values())
        high_N, low_N, scores_N = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.float32)
        self.num_damaged = num = 0
        for path, size in sizes.items():
            for records_R, num_damaged in read_segment(path, size):
                self.num_damaged += num_damaged
                here = slice(num, num + len(records_R))
                high_N[here], low_N[here] = pair_words(records_R["image"], records_R["caption"]).T
                scores_N[here] = records_R["score"]
                num += len(records_R)
        parts: list[np.ndarray] = [high_N[:num], low_N[:num], scores_N[:num]]
        del high_N, low_N, scores_N
        self._high_N, self._low_N, self._scores_N = _sorted(parts)

    def __len__(self) -> int:
        return len(self._scores_N)

    def find(self, words_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(is it known, its score) of each pair, bool and float32 of shape (N,); the score of an unknown one is 0."""
        found_N, scores_N = np.zeros(len(words_N2), dtype=bool), np.zeros(len(words_N2), dtype=np.float32)
        if len(self._scores_N):
            # Two pairs that share 64 bits and not 128 lie side by side; that the second is not found costs one more scoring.
            places_N = np.minimum(np.searchsorted(self._high_N, words_N2[:, 0]), len(self._high_N) - 1)
            found_N = (self._high_N[places_N] == words_N2[:, 0]) & (self._low_N[places_N] == words_N2[:, 1])
            scores_N[found_N] = self._scores_N[places_N[found_N]]
        return found_N, scores_N

    def append(self, image_2: np.ndarray, caption_N2: np.ndarray, scores_N: np.ndarray) -> None:
        """Write one image's list behind what this process wrote: a kill from now on does not lose it.

        Raises:
            WriteError: there is no room; what was written before stays whole.
        """
        data = list_records(image_2, caption_N2, scores_N).tobytes()
        try:
            if self._segment < 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = self.folder / f"{secrets.token_hex(8)}.pairs"
                self._segment = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
                weakref.finalize(self, os.close, self._segment)
            before = os.fstat(self._segment).st_size
            num_written = os.write(self._segment, data)
            if num_written < len(data):  # a nearly full disk
                os.ftruncate(self._segment, before)
                raise OSError(f"{num_written} of {len(data)} bytes could be written")
        except OSError as error:
            raise WriteError(
                f"could not keep pair scores in {self.folder}: {error}. What was kept before is whole, and the same command goes on from "
                f"there. Make room. {_REMEDY}"
            ) from error

    def add(self, words_N2: np.ndarray, scores_N: np.ndarray) -> None:
        """Know these pairs too from now on; a pair that is known keeps its score."""
        parts = ((self._high_N, words_N2[:, 0]), (self._low_N, words_N2[:, 1]), (self._scores_N, scores_N))
        self._high_N, self._low_N, self._scores_N = _sorted([np.concatenate(both) for both in parts])

    def sync(self) -> None:
        """See that what was written outlives a power cut.

        Raises:
            WriteError: it cannot be done.
        """
        if self._segment >= 0:
            try:
                os.fsync(self._segment)
            except OSError as error:
                raise WriteError(f"could not keep pair scores in {self.folder}: {error}. Look at the disk") from error


def _sorted(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(high, low, score) of each distinct pair, by the first 64 bits; of a pair that is there twice the first.

    Where the parts are sorted runs this is one pass (a stable sort merges them). `parts` is emptied, so that each is let go in its turn.
    """
    order_N = np.argsort(parts[0], kind="stable")
    high_N, low_N, scores_N = (parts.pop(0)[order_N] for _ in range(3))
    del order_N
    is_new_N = np.ones(len(high_N), dtype=bool)
    is_new_N[1:] = (high_N[1:] != high_N[:-1]) | (low_N[1:] != low_N[:-1])
    return (high_N, low_N, scores_N) if is_new_N.all() else (high_N[is_new_N], low_N[is_new_N], scores_N[is_new_N])


class PairStore:
    """A folder of kept pair scores, of any number of scorers; each process of a job has its own object for it."""

    def __init__(self, folder: str | os.PathLike[str], say: Callable[[str], Any] = lambda text: print(text, file=sys.stderr)) -> None:
        """Makes the folder, so that one that cannot be written is noticed before the work.

        Raises:
            WriteError: it cannot be made.
        """
        self.folder, self._say = Path(folder), say
        self._opened: dict[str, KeptScores] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"could not make the folder of kept pair scores {self.folder}: {error}. {_REMEDY}") from error

    def of(self, fingerprint: str) -> KeptScores:
        """The kept scores of one scorer, read when they are first asked for.

        Raises:
            UserError: they cannot be read.
        """
        if fingerprint not in self._opened:
            with reading():
                kept = KeptScores(self.folder / fingerprint)
            if kept.num_damaged:
                self._say(
                    f"pair scores: {kept.num_damaged} records in {kept.folder} are damaged or cut short (a kill, a full disk, or a job "
                    f"that is writing now); they are passed over, and {len(kept)} scores are taken"
                )
            self._opened[fingerprint] = kept
        return self._opened[fingerprint]

"""Embeddings on disk: each process writes the blocks that it embeds to a file of its own, and reads them back memory-mapped.

No process reads another's file, so machines need no shared disk: rows for another process are sent over the network, a few blocks at a
time, and memory holds only the rows just read. The files have no name (O_TMPFILE; where a file system lacks it, the name is removed at
once), so the end of a process, a kill included, frees its file.
Shape letters: N rows, B rows of a block, D width, M rows read.
"""

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from eval.encoder.encoder import num_blocks
from eval.errors import naming
from eval.processes import Processes

BLOCKS_AT_ONCE = 64


class EmbeddingRows(Protocol):
    """Unit vectors that all processes read together, in parts, and that are the same on every process."""

    num_rows: int
    width: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, float32 of shape (stop - start, D)."""


class InMemoryRows:
    """Embeddings in memory on every process."""

    def __init__(self, vectors_ND: np.ndarray) -> None:
        self._vectors_ND = vectors_ND
        self.num_rows, self.width = vectors_ND.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        """As :class:`EmbeddingRows` says."""
        return self._vectors_ND[start:stop]


class Shards:
    """Rows on disk, block b on process b % world_size: append every block, call `seal`, then read."""

    def __init__(self, folder: Path | None, num_rows: int, block: int, processes: Processes) -> None:
        """Open this process's file in a folder (None: the system's temporary one), for N rows over all processes in blocks of B.

        Raises:
            OSError: the folder cannot be written.
        """
        self.num_rows, self.width = num_rows, 0
        self._block, self._processes = block, processes
        self._num_own, self._failure = 0, ""
        self._place = Path(tempfile.gettempdir()) if folder is None else folder
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=".embeddings-")  # noqa: SIM115  # closed by close

    def append(self, vectors_BD: np.ndarray) -> None:
        """Write the next block of this process's share.

        Written, not memory-mapped: a full disk is then an error, not a SIGBUS. With several processes `seal` raises the error.

        Raises:
            OSError: the disk is full or broken.
        """
        self.width = vectors_BD.shape[1]
        self._num_own += len(vectors_BD)
        if self._failure:
            return
        try:
            with self._naming():
                self._file.write(np.ascontiguousarray(vectors_BD, dtype=np.float32).data)
        except OSError as error:
            if self._processes.world_size == 1:
                raise
            self._failure = str(error)

    def seal(self) -> None:
        """End the writing, on all processes together.

        Raises:
            OSError: some process could not write its blocks.
        """
        try:
            with self._naming():
                self._file.flush()
        except OSError as error:
            self._failure = self._failure or str(error)
        for part in self._processes.gather(np.frombuffer(self._failure.encode(), dtype=np.uint8)):
            if len(part):
                raise OSError(f"embeddings of this mining: {part.tobytes().decode()}")
        self.width = int(max(part[0] for part in self._processes.gather(np.array([self.width]))))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop on every process, float32 of shape (M, D); all processes read the same rows.

        On one process they are a view of the mapped file: copy rows that must outlive it.
        """
        if self._processes.world_size == 1:
            return self._mapped(start, stop)
        first, last = start // self._block, num_blocks(stop, self._block)
        parts = self._processes.gather(self._mapped(*self._own_span(first, last)))
        vectors_MD = np.empty((min(last * self._block, self.num_rows) - first * self._block, self.width), dtype=np.float32)
        taken = [0] * len(parts)
        for number in range(first, last):
            owner, place = number % len(parts), (number - first) * self._block
            count = min(self._block, len(vectors_MD) - place)
            vectors_MD[place : place + count] = parts[owner][taken[owner] : taken[owner] + count]
            taken[owner] += count
        return vectors_MD[start - first * self._block : stop - first * self._block]

    def at(self, indices_M: np.ndarray) -> np.ndarray:
        """Chosen rows, in any order, on every process, float32 of shape (M, D); all processes read the same."""
        world_size = self._processes.world_size
        blocks_M = indices_M // self._block
        own_M = blocks_M % world_size == self._processes.rank
        local = blocks_M[own_M] // world_size * self._block + indices_M[own_M] % self._block
        parts = self._processes.gather(np.array(self._mapped(0, self._num_own)[local]))
        vectors_MD = np.empty((len(indices_M), self.width), dtype=np.float32)
        for owner, part in enumerate(parts):
            vectors_MD[blocks_M % world_size == owner] = part
        return vectors_MD

    def own(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(indices, vectors, mapped) of this process's own rows, BLOCKS_AT_ONCE blocks at a time."""
        share = self._processes.share_of(num_blocks(self.num_rows, self._block))
        for place in range(0, len(share), BLOCKS_AT_ONCE):
            starts = np.array(share[place : place + BLOCKS_AT_ONCE], dtype=np.int64) * self._block
            indices = (starts[:, None] + np.arange(self._block)).reshape(-1)
            indices = indices[indices < self.num_rows]
            yield indices, self._mapped(place * self._block, place * self._block + len(indices))

    def close(self) -> None:
        """Close the file, which frees its disk space."""
        with self._naming():  # what a full disk did not take is tried again here
            self._file.close()

    def _naming(self) -> AbstractContextManager[None]:
        return naming(self._place, num_bytes=4 * self.num_rows * self.width)

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _own_span(self, first: int, last: int) -> tuple[int, int]:
        """The rows of this process's file that hold its blocks from first to last."""
        rank, world_size = self._processes.rank, self._processes.world_size
        local = [max(0, -(-(number - rank) // world_size)) for number in (first, last)]
        return local[0] * self._block, min(local[1] * self._block, self._num_own)

    def _mapped(self, start: int, stop: int) -> np.ndarray:
        """Rows of this process's file; mapped anew each time, as mapped pages count as this process's memory."""
        if stop <= start:
            return np.empty((0, self.width), dtype=np.float32)
        offset = start * self.width * np.dtype(np.float32).itemsize
        # Copy on write: torch requires writable arrays, though nothing writes to them.
        return np.memmap(self._file, dtype=np.float32, mode="c", offset=offset, shape=(stop - start, self.width))

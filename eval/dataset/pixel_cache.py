"""Pictures decoded and resized once: their bytes on disk, in the hub's cache for assets (HF_ASSETS_CACHE), shared by the runs of a machine.

A file for each way of resizing: a table of entries, then as many places for pictures, both of fixed size, so that the bound on disk is the
file's size; places that hold nothing take no disk. A picture may lie in one of two buckets of `_WAYS` places, which follow from its key. An
entry is the key, a checksum of key and bytes, and when it was last used. It is emptied before its place is written and written after it,
under a lock on its bucket, so that a process that is killed leaves an empty entry, and whatever else happens a wrong checksum: then the
picture is decoded and written again. Where both buckets are full, a picture that no run has used since this one began gives way.

Whoever has a file open shares a lock on all of it, and only a file that nobody has open is removed to make room.

Files are read and written by offset, not through a memory map, where a fault of the disk would end the process.
"""

import errno
import fcntl
import hashlib
import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from eval.dataset.images import decoders
from eval.dataset.picture_warnings import say, taken, tell
from eval.files import cache_folder

_ENTRY = struct.Struct("<16sIIII")
"""Key, checksum, length of the bytes, last use in seconds since 1970, nothing."""
_EMPTY = bytes(_ENTRY.size)
_WAYS = 8
_SUFFIX = ".pixels"
_ROOM_EVERY = 64
"""Pictures written between two looks at the disk that the folder takes."""


class PixelCache:
    """One file of resized pictures."""

    def __init__(self, path: Path, picture_bytes: int, max_bytes: int) -> None:
        """Open a file, or make it.

        Args:
            picture_bytes: of a picture at most.
            max_bytes: of the file.

        Raises:
            OSError: it can be neither made nor opened.
        """
        self.path, self._picture_bytes = path, picture_bytes
        self._num_buckets = num_buckets(picture_bytes, max_bytes)
        self.capacity = self._num_buckets * _WAYS
        self._data_start = self.capacity * _ENTRY.size
        self._began, self._is_writable, self.num_written = int(time.time()), True, 0
        size = self._data_start + self.capacity * picture_bytes
        self._file = _held(path, size)
        if os.fstat(self._file.fileno()).st_size < size:
            os.ftruncate(self._file.fileno(), size)

    @property
    def num_pictures(self) -> int:
        """Pictures that it holds."""
        entries = os.pread(self._file.fileno(), self._data_start, 0)
        return int(np.frombuffer(entries, dtype=np.uint8).reshape(-1, _ENTRY.size)[:, :16].any(axis=1).sum())

    def get(self, key: bytes) -> np.ndarray | None:
        """The bytes of a picture, uint8; None where they are not there, or not as they were written."""
        try:
            for place, raw in self._entries(key):
                known, checksum, length, used, _ = _ENTRY.unpack(raw)
                if known != key:
                    continue
                if length <= self._picture_bytes:
                    found = np.empty(length, dtype=np.uint8)
                    num_read = os.preadv(self._file.fileno(), [found.data], self._data_start + place * self._picture_bytes)
                    if num_read == length and zlib.crc32(found.data, zlib.crc32(key)) == checksum:
                        if used < self._began:
                            with suppress(OSError):
                                os.pwrite(self._file.fileno(), struct.pack("<I", self._now()), place * _ENTRY.size + 24)
                        return found
                self._drop(place, raw)
        except OSError as error:
            tell(f"{self.path}: pictures cannot be read there ({error.strerror})")
        return None

    def put(self, key: bytes, picture: np.ndarray) -> None:
        """Hold the bytes of a picture, uint8, where there is a place for them and nobody writes next to it."""
        if not self._is_writable:
            return
        try:
            entries = self._entries(key)
            halves = [sum(raw == _EMPTY for _, raw in half) for half in (entries[:_WAYS], entries[_WAYS:])]
            free = [halves[number // _WAYS] for number in range(2 * _WAYS)]  # places that are empty in the bucket of each
            used = [_ENTRY.unpack(raw)[3] for _, raw in entries]
            chosen = min(range(2 * _WAYS), key=lambda number: (used[number], -free[number]))
            if used[chosen] < self._began:
                self._write(*entries[chosen], key, picture)
        except OSError as error:
            self._is_writable = False
            tell(f"{self.path.parent}: no more pictures can be cached there ({error.strerror})")

    def _entries(self, key: bytes) -> list[tuple[int, bytes]]:
        """(number, content) of the places where a picture may lie."""
        found = []
        for half in (key[:8], key[8:]):
            first = int.from_bytes(half, "little") % self._num_buckets * _WAYS
            raw = os.pread(self._file.fileno(), _WAYS * _ENTRY.size, first * _ENTRY.size).ljust(_WAYS * _ENTRY.size, b"\0")
            found += [(first + way, raw[way * _ENTRY.size : (way + 1) * _ENTRY.size]) for way in range(_WAYS)]
        return found

    def _write(self, place: int, raw: bytes, key: bytes, picture: np.ndarray) -> None:
        """Write a picture to a place whose entry is still `raw`."""
        file, at = self._file.fileno(), place * _ENTRY.size
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _WAYS * _ENTRY.size, place // _WAYS * _WAYS * _ENTRY.size)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return
        # a file system without locks: the checksum tells what two wrote at a time
        try:
            if os.pread(file, _ENTRY.size, at).ljust(_ENTRY.size, b"\0") != raw:
                return
            if raw != _EMPTY:
                os.pwrite(file, _EMPTY, at)
            whole = np.ascontiguousarray(picture).reshape(-1).data
            if os.pwrite(file, whole, self._data_start + place * self._picture_bytes) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            checksum = zlib.crc32(whole, zlib.crc32(key))
            os.pwrite(file, _ENTRY.pack(key, checksum, len(whole), self._now(), 0), at)
            self.num_written += 1
        finally:
            with suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_UN, _WAYS * _ENTRY.size, place // _WAYS * _WAYS * _ENTRY.size)

    def _now(self) -> int:
        """Now, and after this run began whatever became of the clock."""
        return max(int(time.time()), self._began)

    def _drop(self, place: int, raw: bytes) -> None:
        """Empty an entry whose checksum is wrong, unless it was written anew meanwhile."""
        if os.pread(self._file.fileno(), _ENTRY.size, place * _ENTRY.size) == raw:
            tell(f"{self.path}: what it holds of a picture is damaged, and made again")
            os.pwrite(self._file.fileno(), _EMPTY, place * _ENTRY.size)


class PixelStore:
    """The caches of a run, one for each way in which it resizes, and the bound on the disk that all files there take.

    Attributes:
        folder: of the files.
    """

    def __init__(self, max_gib: float, folder: Path | None = None, *, num_files: int = 1) -> None:
        """Args:
        max_gib: of the folder.
        folder: another one than the machine's.
        num_files: that a run fills at once; each gets its part.
        """
        self.folder, self._max_bytes, self._num_files = folder or cache_folder("pixels"), int(max_gib * 2**30), num_files
        self._caches: dict[tuple[str, int], PixelCache | None] = {}

    def cache(self, recipe: str, picture_bytes: int) -> PixelCache | None:
        """The cache of pictures resized in a way; None, which is said once, where its file cannot be made.

        Args:
            recipe: what the bytes of a picture follow from besides the picture; decoders and the library that resizes are added.
            picture_bytes: of a picture at most.
        """
        if (recipe, picture_bytes) not in self._caches:
            self._caches[recipe, picture_bytes] = self._open(recipe, picture_bytes)
        return self._caches[recipe, picture_bytes]

    def read(self, cache: PixelCache, source: Any, image: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The bytes of an image of a source: out of a cache, or made, and written there.

        A picture that is not known by its content, or whose decoding gave a warning, which is to be said in every run, is not cached.

        Raises:
            eval.dataset.images.ImageError: it does not decode.
        """
        key_of = getattr(source, "picture_key", None)
        key = key_of(image) if key_of is not None else None
        if key is None:
            return make()
        if (found := cache.get(key)) is not None:
            return found
        with taken() as noted:
            made = make()
        say(noted)
        if not noted:
            before = cache.num_written
            cache.put(key, made)
            if cache.num_written > before and cache.num_written % _ROOM_EVERY == 1:
                self._make_room()
        return made

    def lines(self) -> list[str]:
        """What a person should know of it before the first step."""
        caches = [cache for cache in self._caches.values() if cache is not None]
        held = "; ".join(f"{cache.path.name} holds {cache.num_pictures:,} of at most {cache.capacity:,}" for cache in caches)
        gib = self._max_bytes / 2**30
        return [f"pixels    resized pictures are cached in {self.folder}, up to {gib:g} GiB: {held}"] if caches else []

    def _open(self, recipe: str, picture_bytes: int) -> PixelCache | None:
        max_bytes = self._max_bytes // self._num_files
        name = hashlib.sha256(f"{recipe} {picture_bytes} {decoders()}".encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{num_buckets(picture_bytes, max_bytes)}{_SUFFIX}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            cache = PixelCache(path, picture_bytes, max_bytes)
        except OSError as error:
            tell(f"{self.folder}: pictures cannot be cached there ({error.strerror})")
            return None
        self._make_room(cache)
        return cache

    def _make_room(self, *opened: PixelCache) -> None:
        """Remove the files of other ways of resizing, the one that was used longest ago first, while all together take too much disk.

        A file that any process has open stays: what that one writes would be lost.
        """
        own = {cache.path for cache in (*self._caches.values(), *opened) if cache is not None}
        found = list[tuple[float, int, Path]]()
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_blocks * 512, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total > self._max_bytes and path not in own:
                with suppress(OSError), path.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                    total -= size


def _held(path: Path, size: int) -> FileIO:
    """A file that is opened, or made, with a shared lock on all of it until the last process that has it, also by a fork, closes it.

    Over NFS a lock of this kind would keep this very process from the locks on buckets (flock(2)); there it is let go of.

    Args:
        size: of the file; no bucket lies behind it.

    Raises:
        OSError: it can be neither made nor opened.
    """
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
            place = size + os.getpid()  # nobody else's on this machine
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                fcntl.lockf(file, fcntl.LOCK_UN, 1, place)
            except OSError:
                fcntl.flock(file, fcntl.LOCK_UN)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # removed before it was locked


def num_buckets(picture_bytes: int, max_bytes: int) -> int:
    """Buckets of a file of at most so many bytes; at least one."""
    return max(1, max_bytes // (_WAYS * (_ENTRY.size + picture_bytes)))

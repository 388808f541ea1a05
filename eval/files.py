"""Open files that others made: plain files alone, and of them what they hold at that moment.

A FIFO would wait for ever for a writer, and a link to /dev/zero would never end. A file that grows is read up to its size when it was
opened, and a file of /proc, whose size is 0, is empty.
"""

import errno
import io
import os
import stat
from typing import cast

from eval.errors import UserError

MB = 2**20
PICTURE_BYTES = 512 * MB
"""Of one picture; an uncompressed TIFF of the most pixels allowed has 270 MB."""
TABLE_BYTES = 64 * 1024 * MB
"""Of a manifest, or of a file of captions."""
TEXT_BYTES = 1024 * MB
"""Of a text or JSON file that is read whole: qrels, templates, a report."""
CONFIG_BYTES = 32 * MB
"""Of a configuration: YAML, a model's config.json."""

_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


class FileError(UserError, OSError):
    """A file that is none, or is too large: readers that expect an OSError name what asked for it."""


class _AtMost(io.FileIO):
    """A file up to a number of bytes, read from its beginning."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        super().__init__(descriptor, "rb")
        self._left = num_bytes

    def readinto(self, buffer: object, /) -> int:
        count = super().readinto(memoryview(cast(bytearray, buffer))[: self._left]) or 0
        self._left -= count
        return count

    def readall(self) -> bytes:
        parts = []
        while self._left and (part := super().read(self._left)):
            parts.append(part)
            self._left -= len(part)
        return b"".join(parts)

    def seekable(self) -> bool:
        return False


def require_plain(path: str | os.PathLike[str], most_bytes: int | None = None) -> os.stat_result:
    """Refuse what is no plain file, for a library that opens files itself; links are followed.

    Raises:
        FileError: a FIFO, a device or a socket; or more than `most_bytes`.
        OSError: there is nothing of that name, or a folder.
    """
    return _checked(os.stat(path), path, most_bytes)


def open_plain(path: str | os.PathLike[str], most_bytes: int | None = None) -> io.BufferedReader:
    """Open a plain file to read the bytes it has now.

    Raises:
        FileError, OSError: as `require_plain`, or it may not be read.
    """
    require_plain(path, most_bytes)  # before it is opened: opening a device can do something
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | getattr(os, "O_CLOEXEC", 0))
    try:
        found = _checked(os.fstat(descriptor), path, most_bytes)
    except OSError:
        os.close(descriptor)
        raise
    return io.BufferedReader(_AtMost(descriptor, found.st_size))


def read_bytes(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The bytes of a plain file; raises as `open_plain`."""
    with open_plain(path, most_bytes) as file:
        return file.read()


def read_text(path: str | os.PathLike[str], most_bytes: int = TEXT_BYTES, encoding: str = "utf-8", errors: str = "strict") -> str:
    r"""The text of a plain file, its lines ended by \n.

    Raises:
        FileError, OSError: as `open_plain`.
        UnicodeDecodeError: it is of another encoding.
    """
    with io.TextIOWrapper(open_plain(path, most_bytes), encoding=encoding, errors=errors) as file:
        return file.read()


def _checked(found: os.stat_result, path: str | os.PathLike[str], most_bytes: int | None) -> os.stat_result:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise FileError(errno.EINVAL, f"expected a plain file, found {kind}", str(path))
    if most_bytes is not None and found.st_size > most_bytes:
        raise FileError(errno.EFBIG, f"{found.st_size:,} bytes, more than the {most_bytes:,} allowed", str(path))
    return found


def link_outside(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """Where a path below `root` leads by links, if outside it; empty: inside it, or to a blob of its own repository in the hub's cache."""
    target, real_root = os.path.realpath(path), os.path.realpath(root)
    if target == real_root or target.startswith(real_root.rstrip(os.sep) + os.sep):
        return ""
    repository = os.path.abspath(root).partition(f"{os.sep}snapshots{os.sep}")
    return "" if repository[1] and os.path.dirname(target) == os.path.join(os.path.realpath(repository[0]), "blobs") else target

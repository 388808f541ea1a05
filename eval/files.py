"""Open files that others made: plain files alone, and of them what they hold at that moment.

A FIFO would wait for ever for a writer, and a link to /dev/zero would never end. A file that grows is read up to its size when it was
opened, and a file of /proc, whose size is 0, is empty.
"""

import codecs
import errno
import hashlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

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

_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
_HOME = re.compile(r"((?:[\w.-]+[=:])*)~[\w.-]*(?=/)")
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


SETTLED_SECONDS = 2.0
"""Since its last change, a file's: a cache of what was made of it could miss a further change that comes sooner."""


def cache_folder(kind: str) -> Path:
    """Where what is made once on this machine lies, by what it is: in the hub's cache for assets (HF_ASSETS_CACHE)."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "siglip-tuner" / kind


def at_home(value: Any) -> Any:
    """A value of a configuration or a command line, `~/` and `~NAME/` at the beginning of a path made a home folder, as a shell does.

    A path is all of a text, or what follows words and = or : as in data.source=~/pairs.csv and synonyms:~/words.txt. Of a dict or a list,
    each value in it.
    """
    if isinstance(value, str):
        found = _HOME.match(value)
        return value if found is None else found[1] + os.path.expanduser(value[found.end(1) :])
    if isinstance(value, dict):
        return {name: at_home(inner) for name, inner in value.items()}
    return [at_home(inner) for inner in value] if isinstance(value, list) else value


def command_line() -> list[str]:
    """The arguments of the command, `~` made a home folder also where no shell does it (--data=~/pairs.csv)."""
    return [str(at_home(argument)) for argument in sys.argv[1:]]


def require_plain(path: str | os.PathLike[str], most_bytes: int | None = None) -> os.stat_result:
    """Refuse what is no plain file, for a library that opens files itself; links are followed.

    Raises:
        FileError: a FIFO, a device or a socket; or more than `most_bytes`.
        OSError: there is nothing of that name, or a folder.
    """
    return check_plain(os.stat(path), path, most_bytes)


def open_plain(path: str | os.PathLike[str], most_bytes: int | None = None) -> io.BufferedReader:
    """Open a plain file to read the bytes it has now.

    Raises:
        FileError, OSError: as `require_plain`, or it may not be read.
    """
    descriptor, num_bytes = _open(path, most_bytes)
    return io.BufferedReader(_AtMost(descriptor, num_bytes))


def open_archive(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a plain file of any size to read parts of it; raises as `open_plain`."""
    return open(_open(path, None)[0], "rb")


def read_range(path: str | os.PathLike[str], offset: int, num_bytes: int) -> bytes:
    """Bytes of a plain file from `offset` on.

    Raises:
        FileError, OSError: as `open_plain`, or the file ends before.
    """
    descriptor, _ = _open(path, None)
    try:
        parts = []
        while num_bytes and (part := os.pread(descriptor, num_bytes, offset)):
            parts.append(part)
            offset, num_bytes = offset + len(part), num_bytes - len(part)
    finally:
        os.close(descriptor)
    if num_bytes:
        raise FileError(errno.EIO, f"ends {num_bytes:,} bytes too early; it was changed while in use", str(path))
    return b"".join(parts)


def files_stamp(paths: Iterable[str | os.PathLike[str]]) -> int:
    """A number that changes when the name, the size or the time of the last change of one of the files does; 0 without files."""
    stats = [(found.st_size, found.st_mtime_ns, str(path)) for path in paths for found in (os.stat(path),)]
    return int.from_bytes(hashlib.sha256(repr(stats).encode()).digest()[:7]) if stats else 0


def _open(path: str | os.PathLike[str], most_bytes: int | None) -> tuple[int, int]:
    """(descriptor, size in bytes) of a plain file."""
    require_plain(path, most_bytes)  # before it is opened: opening a device can do something
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | getattr(os, "O_CLOEXEC", 0))
    try:
        return descriptor, check_plain(os.fstat(descriptor), path, most_bytes).st_size
    except OSError:
        os.close(descriptor)
        raise


def read_bytes(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The bytes of a plain file; raises as `open_plain`."""
    with open_plain(path, most_bytes) as file:
        return file.read()


def encoding_of(beginning: bytes) -> str:
    """The encoding of a text file that begins with these four bytes, as its byte order mark tells it, and that drops the mark; without one
    UTF-8."""
    return next((encoding for mark, encoding in _MARKS if beginning.startswith(mark)), "utf-8")


def open_text(path: str | os.PathLike[str], most_bytes: int, errors: str = "strict") -> io.TextIOWrapper:
    r"""Open a plain file as text in the encoding that its byte order mark tells, or else UTF-8; its lines end in \n.

    Raises:
        FileError, OSError: as `open_plain`.
    """
    file = open_plain(path, most_bytes)
    return io.TextIOWrapper(file, encoding=encoding_of(file.peek(4)), errors=errors)


def read_text(path: str | os.PathLike[str], most_bytes: int = TEXT_BYTES, errors: str = "strict") -> str:
    r"""The text of a plain file, its lines ended by \n, in the encoding that its byte order mark tells, or else UTF-8.

    Lines are `text.split("\n")`: `splitlines` would also end them at a form feed or a U+2028 within a caption.

    Raises:
        FileError, OSError: as `open_plain`.
        UnicodeDecodeError: it is of another encoding.
    """
    with open_text(path, most_bytes, errors) as file:
        return file.read()


def check_plain(found: os.stat_result, path: str | os.PathLike[str], most_bytes: int | None) -> os.stat_result:
    """As `require_plain`, of a path that was looked at already."""
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

"""Score cache: cross-encoder scores on disk, so that no run scores an (image, caption) pair that this or an earlier run has scored.

FOLDER/FINGERPRINT/1.sqlite is the database of one cross-encoder and its settings (see `PairScorer.fingerprint`). A row is an image's list:

    image     the first 16 bytes of the SHA-256 of the image's content
    captions  of each caption the first 16 bytes of the SHA-256 of its text
    scores    of each caption its score, little-endian float32: the very bits that the cross-encoder gave
    checksum  of the three

Names do not matter: an edited image is another image. One transaction writes one row, or what a GPU scored while the one before was
written, so a kill leaves a list whole or absent. Half a list
must not be used: the rest would be scored in another batch, and its last bits could differ from those of an undisturbed run.

The journal is SQLite's rollback journal, not a write-ahead log. A write-ahead log needs memory that all processes share, so it does not
work where several machines use one network disk; the rollback journal needs only file locks. It is truncated at each commit, not deleted:
no file is made or removed an image. `synchronous = NORMAL` sends the journal and then the file to the disk at each commit: that outlives a
power cut, and costs half of FULL. A process waits for another one's lock for _LOCK_SECONDS at most. No connection stays open between calls,
so none is carried into a forked process.

SQLite has no checksums of its own. A list whose checksum is wrong is skipped and counted. A file that SQLite finds damaged is named and not
used at all; 2.sqlite takes its place. (To rename the damaged file would race with other processes that find the same.)

Shape letters: M captions of one image that have a score.
"""

import hashlib
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import UserError, WriteError, free_bytes

DIGEST = np.dtype("S16")  # numpy drops zero bytes at the end of one element; as every element has 16 bytes, comparisons stay exact
_SCORE = np.dtype("<f4")
_LOCK_SECONDS = 60.0
_IMAGES_AT_ONCE = 1000  # read under one lock: then others get their turn to write
_SCHEMA = [
    b"CREATE TABLE lists (image BLOB NOT NULL, captions BLOB NOT NULL, scores BLOB NOT NULL, checksum BLOB NOT NULL)",
    b"CREATE INDEX lists_by_image ON lists (image)",
]
_OUTSIDE_ERRORS = frozenset(  # they come from outside the file: a lock, the disk, a permission
    [
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    ]
)
_OTHER_FOLDER = (
    "name another folder, on a disk with file locks, or use no cache: --pair-scores FOLDER, --no-pair-scores; in a job rerank.pair_scores: "
    "FOLDER, or false"
)
_DELETE = "Delete it when no job uses it; its scores are then computed again"


def digest(content: bytes) -> bytes:
    """What a content is known by: the first 16 bytes of its SHA-256."""
    return hashlib.sha256(content).digest()[: DIGEST.itemsize]


@dataclass(frozen=True)
class ImageList:
    """The scores of one image: its digest, those of its captions (DIGEST) and the scores (float32), both of shape (M,)."""

    image: bytes
    captions_M: np.ndarray
    scores_M: np.ndarray


class ScoreDatabase:
    """The cached scores of one cross-encoder.

    Attributes:
        path: the database file; it is made when something is first written.
    """

    def __init__(self, folder: Path, log: Callable[[str], Any]) -> None:
        """Checks the whole file, as SQLite's integrity_check does.

        Raises:
            UserError: it cannot be read.
        """
        number = max((int(path.stem) for path in folder.glob("*.sqlite") if path.stem.isdecimal()), default=1)
        while damage := _damage(folder / f"{number}.sqlite"):
            log(f"{damage}. Until then {folder / f'{number + 1}.sqlite'} is used in its place")
            number += 1
        self.path, self._log = folder / f"{number}.sqlite", log
        if any(folder.glob("*.pairs")):
            log(f"score cache: {folder}/*.pairs are of a former format and are not read. Delete them when no job uses them")

    def read(self, images: Sequence[bytes]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(digests of captions, their scores) of each image, by its digest: DIGEST and float32, both of shape (M,); first written, first.

        Raises:
            UserError: the file cannot be read.
        """
        num_damaged = 0
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            block = images[start : start + _IMAGES_AT_ONCE]
            for image, rows in zip(block, self._rows(block), strict=True):
                sound = [row for row in rows if _is_whole(image, *row)]
                num_damaged += len(rows) - len(sound)
                yield (
                    np.frombuffer(b"".join(captions for captions, _, _ in sound), dtype=DIGEST),
                    np.frombuffer(b"".join(scores for _, scores, _ in sound), dtype=_SCORE),
                )
        if num_damaged:
            self._log(f"score cache: {num_damaged} lists in {self.path} are damaged; they are skipped, and scored again. {_DELETE}")

    def _rows(self, images: Sequence[bytes]) -> list[list[tuple[bytes, bytes, bytes]]]:
        """(captions, scores, checksum) of each row of each image."""
        if not self.path.exists():
            return [[] for _ in images]
        select = "SELECT captions, scores, checksum FROM lists WHERE image = ? ORDER BY rowid"
        with _reading(self.path), closing(_connect(self.path, "rw")) as connection:
            connection.execute("BEGIN")
            has_table = bool(_schema(connection))
            return [connection.execute(select, (image,)).fetchall() if has_table else [] for image in images]

    def write(self, image: bytes, captions_M: np.ndarray, scores_M: np.ndarray) -> None:
        """Write one image's list: neither a kill nor a power cut loses it from now on.

        Args:
            image: its digest.
            captions_M: of DIGEST.

        Raises:
            WriteError: it cannot be written; what was written before stays whole.
        """
        self.write_lists([ImageList(image, captions_M, scores_M)])

    def write_lists(self, lists: Sequence[ImageList]) -> None:
        """Write images' lists in one transaction; errors as of `write`."""
        rows = [(one.image, one.captions_M.tobytes(), one.scores_M.astype(_SCORE).tobytes()) for one in lists]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(self.path, "rwc")) as connection:
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("PRAGMA journal_mode = TRUNCATE")
                connection.execute("BEGIN IMMEDIATE")
                for statement in [] if _schema(connection) else _SCHEMA:
                    connection.execute(statement.decode())
                connection.executemany("INSERT INTO lists VALUES (?, ?, ?, ?)", [(*row, _checksum(*row)) for row in rows])
                connection.execute("COMMIT")
        except (OSError, sqlite3.Error, UnicodeError) as error:
            goes_on = f"What was written before is whole, and the same command goes on from there. Make room, or {_OTHER_FOLDER}"
            remedy = f"It is damaged. {_DELETE}" if _is_damage(error) else goes_on
            size = sum(map(len, chain.from_iterable(rows)))
            room = "" if remedy is not goes_on else f"; {size:,} bytes were to be added, {free_bytes(self.path):,} are free"
            raise WriteError(f"score cache: could not write {self.path}: {_reason(error)}{room}. {remedy}") from error


class ScoreCache:
    """A folder of cached scores, of any number of cross-encoders; each process of a job has its own object for it."""

    def __init__(self, folder: str | os.PathLike[str], log: Callable[[str], Any] = lambda text: print(text, file=sys.stderr)) -> None:
        """Makes the folder, so that one that cannot be written is noticed before the work.

        Raises:
            WriteError: it cannot be made.
        """
        self.folder, self._log = Path(folder), log
        self._databases: dict[str, ScoreDatabase] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"could not make the score cache {self.folder}: {error}. Mend that, or {_OTHER_FOLDER}") from error

    def database(self, fingerprint: str) -> ScoreDatabase:
        """The cached scores of one cross-encoder, checked when they are first asked for.

        Raises:
            UserError: they cannot be read.
        """
        if fingerprint not in self._databases:
            self._databases[fingerprint] = ScoreDatabase(self.folder / fingerprint, self._log)
        return self._databases[fingerprint]


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection whose transactions begin only where the code says so; without permission to write, SQLite opens "rw" for reading."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=_LOCK_SECONDS, isolation_level=None)
    connection.text_factory = bytes  # damage may make a blob a text, and that no UTF-8
    return connection


def _schema(connection: sqlite3.Connection) -> list[bytes]:
    """What the file holds; nothing where the process that made it was killed at once."""
    return [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid")]


class _DamagedError(UserError):
    """A file that is no database of ours, or not any more."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"score cache: {path} is damaged ({what}). {_DELETE}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong into an error that says what to do.

    Raises:
        _DamagedError: the file is damaged.
        UserError: something else is wrong: the disk, a permission, a lock that is not released.
    """
    try:
        yield
    except (OSError, sqlite3.Error, UnicodeError) as error:
        if _is_damage(error):
            raise _DamagedError(path, _reason(error)) from error
        raise UserError(f"score cache: could not read {path}: {_reason(error)}. Mend that, or {_OTHER_FOLDER}") from error


def _damage(path: Path) -> _DamagedError | None:
    """What is wrong with a database, if anything is; a file that is not there is not damaged.

    Raises:
        UserError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with _reading(path):
            with path.open("rb") as file:
                header = file.read(20)
            if header and not (header.startswith(b"SQLite format 3\0") and header.endswith(b"\1\1")):  # 1, 1: a rollback journal
                return _DamagedError(path, "not an SQLite database with a rollback journal")
            with closing(_connect(path, "rw")) as connection:
                connection.execute("BEGIN")
                faults = [found.decode("ascii", "replace") for (found,) in connection.execute("PRAGMA integrity_check(1)")]
                if faults != ["ok"]:
                    return _DamagedError(path, " ".join(faults[0].split()))
                return None if _schema(connection) in ([], _SCHEMA) else _DamagedError(path, "not the tables of a score cache")
    except _DamagedError as error:
        return error


def _is_damage(error: Exception) -> bool:
    """False for errors that come from outside the file. UnicodeError: sqlite3 could not decode SQLite's message, which quotes the file."""
    if isinstance(error, OSError):
        return False
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in _OUTSIDE_ERRORS


def _reason(error: Exception) -> str:
    """An error in words; SQLite's name for it says more than its text."""
    name = getattr(error, "sqlite_errorname", "")
    waited = f", another process kept its lock for {_LOCK_SECONDS:g} s" if name.startswith("SQLITE_BUSY") else ""
    return f"{error}{name and f' ({name}{waited})'}"


def _is_whole(image: bytes, captions: Any, scores: Any, checksum: Any) -> bool:
    """Whether a row is what was written."""
    return isinstance(captions, bytes) and isinstance(scores, bytes) and checksum == _checksum(image, captions, scores)


def _checksum(image: bytes, captions: bytes, scores: bytes) -> bytes:
    return hashlib.blake2b(image + captions + scores, digest_size=16).digest()

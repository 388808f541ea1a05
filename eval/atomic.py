"""Files and folders that are replaced whole or not at all: written aside, forced to the disk, committed by a rename; by one at a time.

What is being written to NAME is called .NAME.ID.tmp, and a folder that is being replaced .NAME.ID.old; the ID says which process that is.
Whoever writes NAME holds a lock on .NAME.lock (`claimed`), which goes with the lock.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from eval.errors import UserError, WriteError, naming, writing

Content = str | bytes | Callable[[Path], Any]
"""What a file is to hold, or a function that writes it to a path."""
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<id>[0-9a-f]+)\.(?P<what>tmp|old)")
_ASIDE_ONCE = re.compile(r"\.tmp-(?P<step>\d+)-\d+|\.retired-(?P<retired>step-\d+)")
"""What the first version called a checkpoint being written, or replaced."""
_OLD_SECONDS = 3600.0
"""A leftover of a writer that cannot be asked about, on another machine or of an earlier version, is taken for dead after so long."""
_NO_LOCKS = frozenset([errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
_held: set[Path] = set()


class TakenError(UserError):
    """Another process holds the lock; `holder` is "process PID on HOST"."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is being written by {holder}; wait for it, or give another name")
        self.holder = holder


@contextmanager
def claimed(*paths: Path) -> Iterator[None]:
    """Hold the lock on what is to be written to these files or folders; one that this process holds already stays with its first holder.

    Raises:
        TakenError: another process is writing there.
        OSError: the lock cannot be made beside it: nor could what is to be written.
    """
    with ExitStack() as locks:
        for path in paths:
            locks.enter_context(_claimed(Path(os.path.realpath(path.parent), path.name)))
        yield


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    if path in _held:
        yield
        return
    lock_path, made = path.with_name(f".{path.name}.lock"), [parent for parent in path.parents if not parent.exists()]
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = lock_file(lock_path, path)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            with suppress(OSError):
                lock_path.unlink()  # while it is held: whoever opened it meanwhile sees that it is gone
            lock.close()
    finally:
        with suppress(OSError):
            for folder in made:  # nothing was written, after all
                folder.rmdir()


def lock_file(lock_path: Path, path: Path) -> IO[str]:
    """The locked file, which says who holds it; closing it lets go of the lock. `path` is what it guards, for messages.

    Raises:
        TakenError: another process holds it.
        OSError: it cannot be made.
    """
    while True:
        lock = os.fdopen(os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")
        try:
            # Not flock: the loader's workers would inherit it, and hold it for seconds after a SIGKILL of their parent.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = lock.read(300).strip() or "another process"
            if error.errno not in _NO_LOCKS:
                lock.close()
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise TakenError(path, holder) from None
                raise
            print(f"warning: {path}: no file locks here ({error.strerror}); nothing keeps a second writer away", file=sys.stderr)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock_path)):
                try:
                    os.truncate(lock.fileno(), 0)
                    os.pwrite(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                except OSError:
                    lock_path.unlink()
                    lock.close()
                    raise
                return lock
        lock.close()


def check_writable(*files: Path) -> None:
    """Refuse, before the work, files that could not be written after it; makes nothing.

    Raises:
        WriteError: a folder has the name of one, or what is to hold it is no folder or cannot be written.
    """
    for path in files:
        if path.is_dir():
            raise WriteError(f"could not write {path}: a folder has this name. Move it away, or give another name")
        folder = next(parent for parent in Path(os.path.abspath(path)).parents if os.path.lexists(parent))
        with writing(path):
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            if not os.access(folder, os.W_OK | os.X_OK):
                is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
                number = errno.EROFS if is_read_only else errno.EACCES
                raise OSError(number, os.strerror(number), str(folder))


def replace_files(contents: Mapping[Path, Content]) -> None:
    """Write every file aside, then rename all: a full disk leaves the old report whole, not half of each.

    Raises:
        OSError: one cannot be written; it names the file.
    """
    for path in contents:
        sweep(path.parent, path.name)
    temporaries = {path: _aside(path, "tmp") for path in contents}
    try:
        for path, content in contents.items():
            with naming(path, temporaries[path], len(content) if isinstance(content, str | bytes) else None):
                _write(temporaries[path], content)
        for path, temporary in temporaries.items():
            with naming(path, temporary):
                os.replace(temporary, path)
        for folder in {path.parent for path in contents}:
            sync(folder)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _write(path: Path, content: Content) -> None:
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    sync(path)


def _aside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{_host()}{os.getpid():08x}{_started(os.getpid()):016x}{uuid4().hex[:8]}.{what}")


@cache
def _host() -> str:
    """8 hex digits for this machine, as far as process ids are the same: a container has its own."""
    with suppress(OSError):
        return hashlib.sha256(f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _started(pid: int) -> int:
    """When a running process of this machine began, in clock ticks since the start of the machine; 0: it does not run, or does not say."""
    with suppress(OSError, ValueError, IndexError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return 0 if state in "ZX" else int(rest[18])  # field 22 of proc(5)'s stat
    return 0


def _is_dead(writer: str, leftover: Path) -> bool:
    """Whether the writer of a leftover is gone: asked of this machine where it ran here, else judged by the leftover's age."""
    if len(writer) == 40 and writer[:8] == _host():
        started = int(writer[16:32], 16)
        return started > 0 and _started(int(writer[8:16], 16)) != started
    newest = 0.0
    with suppress(OSError):
        newest = max(path.lstat().st_mtime for path in (leftover, *leftover.rglob("*")))
    return time.time() - newest > _OLD_SECONDS


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to the disk, so that they survive a power cut.

    Raises:
        OSError: it cannot be done.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def apply_umask(folder: Path) -> None:
    """Give every file in a folder, and below it, the mode of a new file there: 0666 less the umask.

    The mode is read off a new file: asking for the umask would mean to change it, for every thread of the process.

    Raises:
        OSError: the folder cannot be written.
    """
    probe = folder / f".mode-{os.getpid()}.tmp"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)
        probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            with suppress(OSError):  # a file system without modes: there is nothing to set
                path.chmod(mode)


@contextmanager
def new_folder(folder: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """`replaced_folder`, but refuses to replace anything, also what another writer put there meanwhile.

    Raises:
        UserError: there is a file of that name, or a folder that is not empty.
        OSError: it cannot be written, or the folder is not empty any more.
    """
    with claimed(folder), folder_aside(folder, num_bytes) as temporary:
        if folder.exists() and (not folder.is_dir() or contents(folder)):
            raise UserError(f"--output {folder}: expected a new or an empty folder; there is something there, which would be lost")
        for name in os.listdir(folder) if folder.is_dir() else ():
            remove(folder / name)  # a desktop's own files
        yield temporary
        commit_folder(temporary, folder, replaces=False)


@contextmanager
def replaced_folder(folder: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """A folder to write into; on the way out it takes the name `folder`, and after an error nothing of it is left.

    Args:
        num_bytes: what is to be written, about, for the message of a full disk; None: not known.

    Raises:
        OSError: it cannot be written; it names a file.
    """
    with claimed(folder), folder_aside(folder, num_bytes) as temporary:
        yield temporary
        commit_folder(temporary, folder)


def contents(folder: Path) -> list[str]:
    """Names of what a folder holds, sorted, but for what a desktop puts into every folder that it shows.

    Raises:
        OSError: it cannot be read.
    """
    return sorted(name for name in os.listdir(folder) if not is_desktop_file(name))


def is_desktop_file(name: str) -> bool:
    """Whether a file of this name is put there by macOS or Windows, and nobody's: .DS_Store, ._NAME, Thumbs.db, desktop.ini."""
    return name.startswith("._") or name.lower() in (".ds_store", "thumbs.db", "desktop.ini")


@contextmanager
def folder_aside(folder: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """A folder next to `folder` to write into and to commit in here; on the way out nothing of it is left. Arguments as of the above.

    Raises:
        OSError: it cannot be written; it names a file.
    """
    folder = Path(os.path.abspath(folder))
    sweep(folder.parent, folder.name)
    temporary = _aside(folder, "tmp")
    try:
        with naming(folder, temporary, num_bytes):
            temporary.mkdir(parents=True)
            yield temporary
    finally:
        remove(temporary)


def commit_folder(temporary: Path, folder: Path, *, replaces: bool = True) -> None:
    """Force a folder that is written to the disk, and give it its name; a folder that has it changes places with it if it `replaces` that.

    Where the file system cannot exchange two names, the old folder leaves its name first, and `sweep` mends what a kill then leaves.

    Raises:
        OSError: it cannot be done, or there is a folder that is not to be replaced.
    """
    folder = Path(os.path.abspath(folder))
    apply_umask(temporary)
    for path in (*temporary.rglob("*"), temporary):
        if path.is_dir() or path.is_file():
            sync(path)
    retired = _aside(folder, "old")
    if replaces and folder.is_dir() and _exchange(temporary, folder):
        retired = temporary
    else:
        if replaces and folder.is_dir():
            os.rename(folder, retired)
        os.rename(temporary, folder)
    sync(folder.parent)
    remove(retired)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False: this system or file system cannot, and nothing has changed."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)  # of Linux; Python does not have it
    at_working_folder, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return exchange is not None and exchange(at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), flag) == 0


def remove_folder(folder: Path) -> None:
    """Remove a folder: renamed first, so that a kill in the middle leaves no half of it under its name.

    Raises:
        OSError: it cannot be renamed.
    """
    doomed = _aside(folder, "tmp")
    os.rename(folder, doomed)
    remove(doomed)


def sweep(folder: Path, name: str | None = None, *, is_alone: bool = False) -> None:
    """Remove what dead writers left in a folder (if given, of what was to be called `name`); what was being replaced comes back.

    Args:
        is_alone: a lock proves that nobody else writes here: all that is left is of the dead.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        found = _leftover(path.name)
        if found is None or name not in (None, found[0]):
            continue
        target, writer, is_old = folder / found[0], found[1], found[2]
        is_dead = is_alone or _is_dead(writer, path)
        if is_old and not target.exists() and (is_dead or writer[:8] != _host()):  # to bring it back costs no other writer anything
            with suppress(FileNotFoundError):
                os.rename(path, target)
        elif is_dead:
            remove(path)


def _leftover(name: str) -> tuple[str, str, bool] | None:
    """(what it was to be called, its writer, whether it was being replaced) of what is written aside; None: it is something else."""
    if found := _ASIDE.fullmatch(name):
        return found["name"], found["id"], found["what"] == "old"
    if found := _ASIDE_ONCE.fullmatch(name):
        return found["retired"] or f"step-{found['step']}", "", found["retired"] is not None
    return None


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)

"""Files that are replaced whole or not at all."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eval.errors import UserError


def replace_together(writers: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Write every file beside its place first, then rename all: a full disk leaves the old report whole, not half of each."""
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writers}
    try:
        for path, write in writers.items():
            write(temporaries[path])
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk.

    Raises:
        OSError: it cannot be done.
    """
    _sync(path)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename survives a power cut.

    Raises:
        OSError: it cannot be done.
    """
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; on the way out it takes that name, and after an error nothing of it is left.

    Raises:
        UserError: there is a file of that name, or a folder that is not empty.
        OSError: it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder}: expected a new or an empty folder; there is something there, which would be lost")
    own_leftover = re.compile(rf"\.{re.escape(folder.name)}\.\d+\.tmp")  # and not one of "NAME.more", which may be being written
    for leftover in folder.parent.glob(".*.tmp"):
        if own_leftover.fullmatch(leftover.name):  # of a writer that was killed
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        apply_umask(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                sync_file(path)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

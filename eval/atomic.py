"""Files and folders that are replaced whole or not at all: written aside, forced to the disk, committed by a rename.

What is being written to NAME is called .NAME.ID.tmp, and a folder that is being replaced .NAME.ID.old.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from eval.errors import UserError, naming

Content = str | bytes | Callable[[Path], Any]
"""What a file is to hold, or a function that writes it to a path."""
_ASIDE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.(?P<what>tmp|old)")


def replace_files(contents: Mapping[Path, Content], writer: str | None = None) -> None:
    """Write every file aside, then rename all: a full disk leaves the old report whole, not half of each.

    Args:
        writer: hexadecimal id of this writer, where several write the same file at the same time: leftovers are not swept, for they may
            be another's.

    Raises:
        OSError: one cannot be written; it names the file.
    """
    for path in contents if writer is None else ():
        sweep(path.parent, path.name)
    temporaries = {path: _aside(path, "tmp", writer) for path in contents}
    try:
        for path, content in contents.items():
            with naming(path):
                _write(temporaries[path], content)
        for path, temporary in temporaries.items():
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


def _aside(path: Path, what: str, writer: str | None = None) -> Path:
    return path.with_name(f".{path.name}.{writer or uuid4().hex}.{what}")


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
    """`replaced_folder`, but refuses to replace anything, also what another writer put there meanwhile.

    Raises:
        UserError: there is a file of that name, or a folder that is not empty.
        OSError: it cannot be written, or the folder is not empty any more.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder}: expected a new or an empty folder; there is something there, which would be lost")
    with folder_aside(folder) as temporary:
        yield temporary
        commit_folder(temporary, folder, replaces=False)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into; on the way out it takes the name `folder`, and after an error nothing of it is left.

    Raises:
        OSError: it cannot be written; it names a file.
    """
    with folder_aside(folder) as temporary:
        yield temporary
        commit_folder(temporary, folder)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A folder next to `folder` to write into and to commit in here; on the way out nothing of it is left.

    Raises:
        OSError: it cannot be written; it names a file.
    """
    folder = Path(os.path.abspath(folder))
    sweep(folder.parent, folder.name)
    temporary = _aside(folder, "tmp")
    try:
        with naming(folder):
            temporary.mkdir(parents=True)
            yield temporary
    finally:
        remove(temporary)


def commit_folder(temporary: Path, folder: Path, *, replaces: bool = True) -> None:
    """Force a folder that is written to the disk, and give it its name, which a folder that has it leaves first if this one `replaces` it;
    `sweep` mends what a kill in here leaves.

    Raises:
        OSError: it cannot be done, or there is a folder that is not to be replaced.
    """
    folder = Path(os.path.abspath(folder))
    apply_umask(temporary)
    for path in (*temporary.rglob("*"), temporary):
        if path.is_dir() or path.is_file():
            sync(path)
    retired = _aside(folder, "old")
    if replaces and folder.is_dir():
        os.rename(folder, retired)
    os.rename(temporary, folder)
    sync(folder.parent)
    remove(retired)


def remove_folder(folder: Path) -> None:
    """Remove a folder: renamed first, so that a kill in the middle leaves no half of it under its name.

    Raises:
        OSError: it cannot be renamed.
    """
    doomed = _aside(folder, "tmp")
    os.rename(folder, doomed)
    remove(doomed)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left in a folder (if given, of what was to be called `name`); what was being replaced comes back."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        found = _ASIDE.fullmatch(path.name)
        if found is None or name not in (None, found["name"]):
            continue
        if found["what"] == "old" and not (folder / found["name"]).exists():
            os.rename(path, folder / found["name"])
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)

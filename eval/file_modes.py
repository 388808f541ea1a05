"""The modes of files that others read: what the umask leaves, as for any other new file. safetensors >= 0.8 writes its own as 0600."""

import os
from contextlib import suppress
from pathlib import Path


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

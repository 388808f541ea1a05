"""What must outlive a power cut is forced to the disk: a file's bytes before its rename, a folder's entries after it."""

import os
from pathlib import Path


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

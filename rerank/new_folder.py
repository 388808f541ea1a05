"""A folder that is written whole or not at all."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.durable import sync_file, sync_folder
from eval.errors import UserError
from eval.file_modes import apply_umask


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

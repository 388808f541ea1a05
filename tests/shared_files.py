"""What others find in the folders that the commands leave: which files, and with which modes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SENTENCE_TRANSFORMERS_FILES = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}


def age(folder: Path) -> None:
    """Make a folder and what is in it two hours old, as what a killed writer of an earlier version left."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - 7200,) * 2)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """The umask of this process for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> set[int]:
    """The permission bits of every file in a folder and below it."""
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}

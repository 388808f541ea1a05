"""Files that are replaced whole or not at all."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


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

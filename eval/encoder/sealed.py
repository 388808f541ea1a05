"""Sealed folders: manifest.json holds the SHA-256 of every file, so that damage is seen before anything is read from them."""

import functools
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from eval.atomic import hash_file
from eval.errors import UserError
from eval.files import require_plain

MANIFEST = "manifest.json"


def seal(folder: Path, known: Mapping[str, str] = {}, *, without: Collection[str] = ()) -> None:
    """Write manifest.json with the hash of every file in a folder but those named; folders in it have a manifest of their own, or none.

    Args:
        known: file -> its hash, of those that need not be read.

    Raises:
        OSError: it cannot be written.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in (MANIFEST, *without))
    record = {"sha256": {name: known.get(name) or hash_file(folder / name) for name in names}}
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path, names: Collection[str] = (), hash_of: Callable[[Path], str] = hash_file) -> str:
    """What is wrong with a sealed folder, in words; empty when every file named in its manifest is there with the right bytes.

    Args:
        names: look at these files alone; empty: at all.
    """
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        for name, expected in hashes.items() if not names else [(name, hashes[name]) for name in names]:
            if Path(name).name != name:
                return f"{MANIFEST} names {name!r}, which is no file of the folder"
            if hash_of(folder / name) != expected:
                return f"{name} does not have the bytes that were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is not there"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def sealed_hashes(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, hex, as a folder's manifest has them; empty: there is none, or none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def is_sealed(folder: Path) -> bool:
    """Whether a folder has a manifest of ours, or a damaged one; a manifest.json of another format says nothing about its files."""
    if not os.path.isfile(folder / MANIFEST):
        return False
    try:
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return isinstance(record, dict) and "sha256" in record


def check_sealed(model: str | os.PathLike[str]) -> None:
    """Refuse an export that is not as it was written; a folder without a manifest, and a model of the hub, pass.

    Every file is read once more for it, and no file twice in a process while its size and time stay the same.

    Raises:
        UserError: naming the file.
    """
    folder = Path(model)
    if is_sealed(folder) and (fault := verify(folder, hash_of=_hash_once)):
        raise UserError(
            f"{model} is damaged: {fault} ({MANIFEST} holds the SHA-256 of its files). Export or copy it again; if it was changed on "
            f"purpose, remove its {MANIFEST}"
        )


def _hash_once(path: Path) -> str:
    found = require_plain(path)
    return _hash_stamped(path.resolve(), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_stamped(path: Path, size: int, mtime_ns: int) -> str:
    """The hash of a file of this size and time of its last change."""
    return hash_file(path)

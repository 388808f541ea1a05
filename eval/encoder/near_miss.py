"""The model's folder that was perhaps meant by a name that leads to none: a run's export, a name typed almost so, a path as seen from
the repository."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_CONFIG = "config.json"
_MOST_FOLDERS = 1000
_NUM_MATCHES, _LEAST_RATIO = 3, 0.75


def meant(name: str) -> str:
    """A sentence that names the folder that was perhaps meant, after a blank; empty: none is near.

    >>> meant("demo/models/siglip-bse")
    ' Did you mean demo/models/siglip-base?'
    """
    for place in dict.fromkeys((Path(name), _ROOT / name)):
        for folder in _spelt_almost_so(place):
            for model in (folder, folder / "export"):
                if os.path.isfile(model / _CONFIG):
                    return f" Did you mean {model}?"
    return ""


def _spelt_almost_so(path: Path) -> list[Path]:
    """Folders whose path is this one, or differs in the spelling of some names."""
    found = [Path(path.anchor)]
    for name in path.parts[bool(path.anchor) :]:
        found = [inner for folder in found for inner in _inner(folder, name)]
    return found


def _inner(folder: Path, name: str) -> list[Path]:
    if os.path.isdir(folder / name):
        return [folder / name]
    return [folder / match for match in get_close_matches(name, list(_folders(folder)), _NUM_MATCHES, _LEAST_RATIO)]


def _folders(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entry.name for _, entry in zip(range(_MOST_FOLDERS), entries, strict=False) if entry.is_dir())
    except OSError:
        return

"""Where the pictures of a manifest are, when they are not below the image root that is in force."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.manifest.names import called

_NUM_TRIED = 5  # paths
_MOST_FOLDERS = 20


def wrong_root(missing: Sequence[str], num_found: int, image_root: Path, manifest_folder: Path) -> str:
    """One line on an image root that most pictures are not below, where another folder near it holds them; else empty.

    Args:
        missing: paths below the image root that lead to no file, each once.
        num_found: pictures that are there.
    """
    if len(missing) <= num_found:
        return ""
    for folder in _near(image_root, manifest_folder):
        tried = missing[:_NUM_TRIED]
        if 2 * sum(os.path.isfile(folder / path) for path in tried) <= len(tried):
            continue
        of = f"{len(missing):,} of {len(missing) + num_found:,} pictures are not below {str(image_root)!r}, such as {missing[0]!r}"
        gone = [path for path in missing if not os.path.isfile(folder / path)]
        but = f", but for {len(gone):,} that are not there either, such as {gone[0]!r}" if gone else ""
        return f"{of}. They are below {str(folder)!r}{but}: set {called('image_root')}={folder}"
    return ""


def _near(image_root: Path, manifest_folder: Path) -> Iterator[Path]:
    """Folders that the paths of a manifest may be meant for: the manifest's, the one around it or the root, and those in it or the root."""
    image_root, manifest_folder = Path(os.path.abspath(image_root)), Path(os.path.abspath(manifest_folder))
    yield from dict.fromkeys((manifest_folder, image_root.parent, manifest_folder.parent))
    for folder in dict.fromkeys((image_root, manifest_folder)):
        yield from _inner(folder)


def _inner(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            inner = [entry.name for _, entry in zip(range(1000), entries, strict=False) if entry.name[0] != "." and entry.is_dir()]
    except OSError:
        return []
    return [folder / name for name in sorted(inner)[:_MOST_FOLDERS]]

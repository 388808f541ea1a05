"""Where a manifest's paths lead: to a plain file that is there, inside the image root, also by links, never to a URL."""

import os
import posixpath
import re
from pathlib import Path

from eval.files import PICTURE_BYTES, FileError, link_outside, require_plain
from eval.manifest.rows import is_unicode

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.\-]*://|^data:")


class PathFault(Exception):
    """A path that cannot be used: what is wrong with it, and its kind, for counting."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class ImagePaths:
    """The files below one image root (for messages: set by `setting`); the file system is asked about each picture once."""

    def __init__(self, image_root: Path, setting: str = "data.image_root") -> None:
        self.image_root, self.setting = image_root, setting
        self._found: dict[str, int | PathFault] = {}  # bytes of each file, or what is wrong with it
        self._linked_folders: dict[str, str] = {}  # where a folder leads to, if that is outside the root

    def find(self, value: object) -> tuple[str, Path, int]:
        """(path relative to the root, path, size in bytes) of what a cell of a manifest names.

        Raises:
            PathFault: no path, a URL, outside the root, no plain file, or one that is too large.
        """
        if not isinstance(value, str) or not value.strip() or not is_unicode(value):
            raise PathFault("no image", f"expected a path or embedded bytes, found {value!r:.80}")
        if _URL.match(value):
            raise PathFault("URL", f"{value!r:.200} is a URL; nothing is fetched from a manifest. Download the pictures and give paths")
        relative = posixpath.normpath(os.path.relpath(value, self.image_root) if os.path.isabs(value) else value)
        if relative == ".." or relative.startswith("../"):
            raise PathFault("path outside the image root", f"{value!r} lies outside {str(self.image_root)!r}; set {self.setting}")
        path = self.image_root / relative
        if relative not in self._found:
            self._found[relative] = self._look(path)
        found = self._found[relative]
        if isinstance(found, PathFault):
            raise found
        return relative, path, found

    def _look(self, path: Path) -> int | PathFault:
        """Size in bytes of a picture's file, or what is wrong with it."""
        try:
            num_bytes = require_plain(path, PICTURE_BYTES).st_size
        except FileError as error:
            return PathFault("no plain file", f"{str(path)!r:.300}: {error.strerror}")
        except (OSError, ValueError):  # also a name too long for the file system: a caption in the column of paths, say
            remedy = "Paths are written with / here" if "\\" in str(path) else f"Is {self.setting} right?"
            return PathFault("missing file", f"{str(path)!r:.300} does not exist or is no file. {remedy}")
        if target := self._link_outside(path):
            remedy = f"Put the pictures there, or set {self.setting} to a folder that holds them"
            return PathFault("link outside the image root", f"{str(path)!r:.300} is a link to {target!r:.300}. {remedy}")
        return num_bytes

    def _link_outside(self, path: Path) -> str:
        """Where links lead from the root, if they do: asked of each folder once, and of each file that is a link."""
        folder = os.path.dirname(path)
        if folder not in self._linked_folders:
            self._linked_folders[folder] = link_outside(folder, self.image_root)
        return link_outside(path, self.image_root) if os.path.islink(path) else self._linked_folders[folder]

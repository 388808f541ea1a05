"""Where a manifest's paths lead: to a file that is there, inside the image root, never to a URL."""

import os
import posixpath
import re
from pathlib import Path

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
        self._sizes: dict[str, int] = {}  # bytes of a file, -1 where there is none

    def find(self, value: object) -> tuple[str, Path, int]:
        """(path relative to the root, path, size in bytes) of what a cell of a manifest names.

        Raises:
            PathFault: no path, a URL, outside the root, or no file.
        """
        if not isinstance(value, str) or not value.strip() or not is_unicode(value):
            raise PathFault("no image", f"expected a path or embedded bytes, found {value!r:.80}")
        if _URL.match(value):
            raise PathFault("URL", f"{value!r:.200} is a URL; nothing is fetched from a manifest. Download the pictures and give paths")
        relative = posixpath.normpath(os.path.relpath(value, self.image_root) if os.path.isabs(value) else value)
        if relative == ".." or relative.startswith("../"):
            raise PathFault("path outside the image root", f"{value!r} lies outside {str(self.image_root)!r}; set {self.setting}")
        path = self.image_root / relative
        if relative not in self._sizes:
            try:
                self._sizes[relative] = path.stat().st_size if path.is_file() else -1
            except OSError:  # a name too long for the file system: a caption in the column of paths, say
                self._sizes[relative] = -1
        if self._sizes[relative] < 0:
            remedy = "Paths are written with / here" if "\\" in value else f"Is {self.setting} right?"
            raise PathFault("missing file", f"{str(path)!r:.300} does not exist or is no file. {remedy}")
        return relative, path, self._sizes[relative]

"""Where a manifest's paths lead: to a plain file that is there, inside the image root, also by links, never to a URL.

A name that is not there as it is written is looked for as Unicode composes it (NFC, as Linux and Windows write it) and decomposes it (NFD,
as macOS does): a manifest written on one leads to the files of the other.
"""

import os
import posixpath
import re
import stat
import unicodedata
from pathlib import Path

from eval.files import PICTURE_BYTES, FileError, check_plain, link_outside, require_plain
from eval.manifest.names import called
from eval.manifest.rows import is_unicode
from eval.manifest.skipped import MISSING

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.\-]*://|^data:")



class PathFault(Exception):
    """A path that cannot be used: what is wrong with it, and its kind, for counting."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class ImagePaths:
    """The files below one image root (`setting`: of names.py next to this, for messages).

    Attributes:
        prefix: what the path of every file begins with.
    """

    def __init__(self, image_root: Path, setting: str = "image_root") -> None:
        self.image_root, self.setting = image_root, called(setting)
        self.prefix = str(image_root / "x")[:-1]
        self._found: dict[str, int | PathFault] = {}  # bytes of each file, or what is wrong with it
        self._actual: dict[str, str] = {}  # name that is not ASCII -> that on the disk
        self._linked_folders: dict[str, str] = {}  # where a folder leads to, if that is outside the root

    def find(self, value: object) -> tuple[str, Path, int]:
        """(path relative to the root, as the disk has it; path; size in bytes) of what a cell of a manifest names.

        Raises:
            PathFault: no path, a URL, outside the root, no plain file, or one that is too large.
        """
        relative = self.relative(value)
        if relative not in self._found:
            self._found[relative] = self._look(relative)
        found = self._found[relative]
        if isinstance(found, PathFault):
            raise found
        return relative, self.image_root / relative, found

    def relative(self, value: object) -> str:
        """The path below the root that a cell of a manifest names; the file system is asked only how it writes a name that is not ASCII.

        Raises:
            PathFault: no path, a URL, or outside the root.
        """
        if not isinstance(value, str) or not value.strip() or not is_unicode(value):
            raise PathFault("no image", f"expected a path or embedded bytes, found {value!r:.80}")
        if _URL.match(value):
            raise PathFault("URL", f"{value!r:.200} is a URL; nothing is fetched from a manifest. Download the pictures and give paths")
        if value.startswith("~") and not os.path.lexists(self.image_root / value):
            value = os.path.expanduser(value)
        relative = posixpath.normpath(os.path.relpath(value, self.image_root) if os.path.isabs(value) else value)
        if relative == ".." or relative.startswith("../"):
            raise PathFault("path outside the image root", f"{value!r} lies outside {str(self.image_root)!r}; set {self.setting}")
        return relative if relative.isascii() else self._on_disk(relative)

    def num_bytes(self, relative: str) -> int:
        """Size of the file of a path below the root; what is wrong with it is remembered, the size of one that can be used is not.

        Raises:
            PathFault: no plain file, or one that is too large.
        """
        found = self._found.get(relative) or self._look(relative)
        if isinstance(found, PathFault):
            self._found[relative] = found
            raise found
        return found

    def _on_disk(self, relative: str) -> str:
        """A path as the disk has it, each part as it is written, or else composed or decomposed; unchanged where it is not there."""
        if relative not in self._actual:
            self._actual[relative] = relative if os.path.lexists(self.image_root / relative) else self._other_form(relative) or relative
        return self._actual[relative]

    def _other_form(self, relative: str) -> str:
        """Empty where it is not there."""
        actual = ""
        for part in relative.split("/"):
            forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
            there = (path for form in forms if os.path.lexists(self.image_root / (path := posixpath.join(actual, form))))
            if not (actual := next(there, "")):
                return ""
        return actual

    def _look(self, relative: str) -> int | PathFault:
        """Size in bytes of a picture's file, or what is wrong with it."""
        path = self.prefix + relative
        try:
            found = os.lstat(path)
            is_link = stat.S_ISLNK(found.st_mode)
            found = require_plain(path, PICTURE_BYTES) if is_link else check_plain(found, path, PICTURE_BYTES)
        except FileError as error:
            return PathFault("no plain file", f"{str(self.image_root / relative)!r:.300}: {error.strerror}")
        except (OSError, ValueError):  # also a name too long for the file system: a caption in the column of paths, say
            path = str(self.image_root / relative)
            remedy = "Paths are written with / here" if "\\" in path else f"Is {self.setting} right?"
            return PathFault(MISSING, f"{path!r:.300} does not exist or is no file. {remedy}")
        if target := self._link_outside(path, is_link):
            remedy = f"Put the pictures there, or set {self.setting} to a folder that holds them"
            return PathFault("link outside the image root", f"{path!r:.300} is a link to {target!r:.300}. {remedy}")
        return found.st_size

    def _link_outside(self, path: str, is_link: bool) -> str:
        """Where links lead from the root, if they do: asked of each folder once, and of each file that is a link."""
        folder = path[: path.rfind("/")] or os.path.dirname(path)
        if folder not in self._linked_folders:
            self._linked_folders[folder] = link_outside(folder, self.image_root)
        return link_outside(path, self.image_root) if is_link else self._linked_folders[folder]

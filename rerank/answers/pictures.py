"""The images of the collection: every image under a folder, or those that a manifest names.

Shape letters: I images.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from eval.atomic import is_desktop_file
from eval.dataset.images import FORMATS
from eval.dataset.retrieval_set import ImageEntry, StoredImages
from eval.errors import UserError
from eval.files import link_outside
from eval.manifest.arrow import is_saved_dataset
from eval.manifest.manifest import COLUMNS, Fault, ManifestError
from eval.manifest.paths import ImagePaths, PathFault
from eval.manifest.rows import Row, RowSource, is_unicode
from eval.manifest.source import open_rows

SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


@dataclass
class SkippedFiles:
    """The files of the folder that are skipped.

    Attributes:
        num_hidden: files and folders whose name begins with a dot.
        num_linked: links to folders, which are not followed.
        suffixes: of files that are no images of a known format, the number of each ("" for none).
    """

    num_hidden: int = 0
    num_linked: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)

    def in_words(self) -> str:
        """Such as "2 hidden, 5 that are no pictures (3 .txt, 2 without a suffix)"; empty if nothing was skipped."""
        parts = [f"{self.num_hidden:,} hidden"] if self.num_hidden else []
        parts += [f"{self.num_linked:,} linked folder{'s' if self.num_linked > 1 else ''}"] if self.num_linked else []
        if self.suffixes:
            kinds = sorted(self.suffixes.items(), key=lambda kind: (-kind[1], kind[0]))
            named = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in kinds[:5]]
            more = ["..."] if len(kinds) > len(named) else []
            parts.append(f"{self.suffixes.total():,} that are no pictures ({', '.join(named + more)})")
        return ", ".join(parts)


class PictureList(StoredImages):
    """Pictures in id order; each is decoded when it is loaded."""

    def __init__(
        self, pictures: Iterable[ImageEntry], source: str, rows: RowSource | None = None, skipped: SkippedFiles | None = None
    ) -> None:
        """rows: the manifest rows with the bytes of embedded images."""
        super().__init__(sorted(pictures, key=lambda picture: picture.id), rows, source)
        self.skipped = skipped or SkippedFiles()

    def without(self, broken: np.ndarray) -> "PictureList":
        """The list without some images, by index; the order does not change."""
        remaining = np.setdiff1d(np.arange(self.num_images), broken).tolist()
        pictures = [ImageEntry(self.image_ids[image], self._paths[image], int(self._embedded_rows_I[image])) for image in remaining]
        return PictureList(pictures, self.source, self._rows, self.skipped)


def is_picture_folder(source: str) -> bool:
    """Whether the source is a folder of images, and not one that `datasets` saved."""
    return Path(source).is_dir() and not is_saved_dataset(Path(source))


def read_folder(folder: str) -> PictureList:
    """Every picture under a folder, by suffix; a picture's id is its path below the folder.

    Raises:
        UserError: there is no picture, the name of one is not UTF-8, or one is a link out of the folder.
        OSError: a folder cannot be read.
    """
    skipped = SkippedFiles()
    ids = list(_walk(folder, skipped))
    if not ids:
        looked = skipped.in_words()
        tables = " There are .parquet files in it: to read pictures out of those, give --images 'FOLDER/*.parquet'."
        raise UserError(
            f"--images {folder}: no pictures in it or below it; expected files named {', '.join(sorted(SUFFIXES))}"
            + (f"; found {looked}." if looked else "; it is empty.")
            + (tables if ".parquet" in skipped.suffixes else " Give the folder that holds the pictures.")
        )
    if bad := [name for name in ids if not is_unicode(name)]:
        raise UserError(f"--images {folder}: the names of {len(bad)} pictures are not UTF-8, e.g. {bad[0]!a}: rename them")
    paths = [os.path.join(folder, name) for name in ids]
    if linked := [path for path in paths if os.path.islink(path) and link_outside(path, folder)]:
        what = f"{len(linked)} pictures are links out of it, e.g. {linked[0]!r} to {os.path.realpath(linked[0])!r}"
        raise UserError(f"--images {folder}: {what}. Give the folder that holds them, or copy them")
    return PictureList(map(ImageEntry, ids, paths), folder, skipped=skipped)


def _walk(folder: str, skipped: SkippedFiles) -> Iterator[str]:
    """Paths of pictures below a folder, relative to it."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        shown = [name for name in folders if name[0] != "."]
        linked = [name for name in shown if os.path.islink(os.path.join(parent, name))]
        skipped.num_hidden += len(folders) - len(shown)
        skipped.num_linked += len(linked)
        folders[:] = shown
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name[0] == "." or is_desktop_file(name):
                skipped.num_hidden += 1
            elif suffix in SUFFIXES:
                yield os.path.relpath(os.path.join(parent, name), folder)
            else:
                skipped.suffixes[suffix] += 1


def read_rows(source: str, *, image_root: str | None = None, columns: Mapping[str, str], split: str | None = None) -> PictureList:
    """The images of a manifest; its captions, if any, are not read.

    Args:
        source: .jsonl, .csv, .parquet, a glob of .parquet, a saved `datasets` folder or a hub id.
        image_root: folder that paths are relative to; default: the manifest's.
        columns: our column name -> the manifest's own (image, id, split).
        split: only the rows of this split.

    Raises:
        ManifestError: a row names no picture that is there, or two pictures have one id; every fault at once.
        UserError: the source cannot be read.
    """
    mapping = {name: columns.get(name, name) for name in COLUMNS}
    rows = open_rows(source, mapping)
    faults = [Fault(where, "unreadable row", what) for where, what in rows.faults]
    for name in ("image", *(["split"] if split is not None else [])):
        if mapping[name] not in rows.columns:
            what = f"no column {mapping[name]!r}; columns found: {rows.columns}. Name the right one: --column {name}=NAME"
            faults.append(Fault(rows.header_place, "unknown column", what))
    if faults:
        raise ManifestError(source, faults)
    paths = ImagePaths(Path(image_root) if image_root is not None else rows.folder, "--image-root")
    found: dict[str, tuple[str, ImageEntry]] = {}
    for row in rows:
        if split is None or row.split == split:
            _add(row, paths, found, faults)
    if not found and not faults:
        faults.append(Fault(source, "empty", "no rows" if split is None else f"no row has split {split!r}; leave --split out to take all"))
    if faults:
        raise ManifestError(source, faults)
    return PictureList((picture for _, picture in found.values()), source, rows)


def _add(row: Row, paths: ImagePaths, found: dict[str, tuple[str, ImageEntry]], faults: list[Fault]) -> None:
    """Add the image of a row, or its fault. Several rows of one image (one for each caption, say) give one entry."""
    try:
        key, path, _ = paths.find(row.image) if row.embedded is None else (row.embedded.key, "", 0)
    except PathFault as fault:
        faults.append(Fault(row.where, fault.kind, str(fault)))
        return
    name = str(row.id) if row.id not in (None, "") else key
    known_key, _ = found.setdefault(name, (key, ImageEntry(name, str(path), row.embedded.row if row.embedded is not None else -1)))
    if known_key != key:
        what = f"id {name!r} names {key!r} here and {known_key!r} above; give each picture an id of its own"
        faults.append(Fault(row.where, "id twice", what))

"""The images of the collection: every image under a folder, or those that a manifest names.

Shape letters: I images.
"""

import copy
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval.atomic import is_desktop_file
from eval.dataset.images import HEIF_REMEDY, HEIF_SUFFIXES, picture_suffixes
from eval.dataset.retrieval_set import StoredImages, StringColumn
from eval.errors import UserError
from eval.files import link_outside
from eval.manifest.columns import asked_mapping, map_columns, missing_column
from eval.manifest.formats.arrow import is_saved_dataset
from eval.manifest.image_root import wrong_root
from eval.manifest.image_table import ImageTable
from eval.manifest.joiner import Joiner, RowCounts
from eval.manifest.manifest import Fault, Manifest, ManifestError, RowRules, Skipped, cell_text, left_out_line
from eval.manifest.paths import MISSING, ImagePaths
from eval.manifest.rows import RowSource, is_unicode
from eval.manifest.source import open_rows


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
        if HEIF_SUFFIXES & self.suffixes.keys():
            parts.append(HEIF_REMEDY)
        return ", ".join(parts)


@dataclass(frozen=True)
class ImageEntry:
    """One image: its id, and its path or the row of the manifest that embeds its bytes."""

    id: str
    path: str = ""
    embedded_row: int = -1


class PictureList(StoredImages):
    """Pictures in id order; each is decoded when it is loaded."""

    def __init__(
        self, pictures: Iterable[ImageEntry], source: str, rows: RowSource | None = None, skipped: SkippedFiles | None = None
    ) -> None:
        """rows: the manifest rows with the bytes of embedded images."""
        ordered = sorted(pictures, key=lambda picture: picture.id)
        ids, paths = StringColumn([picture.id for picture in ordered]), StringColumn([picture.path for picture in ordered])
        embedded_row_I = np.array([picture.embedded_row for picture in ordered], dtype=np.int64)
        super().__init__(ids, paths, embedded_row_I, rows, source=source)
        self.skipped = skipped or SkippedFiles()
        self._splits: Sequence[str | None] = [None]
        self._split_I = np.zeros(len(ordered), dtype=np.int64)
        self.skipped_rows: list[Skipped] = []
        self.counts = RowCounts()
        self.notes: list[str] = []
        self.left_out = left_out_line(source, rows) if rows is not None else ""

    @classmethod
    def of_manifest(cls, images: ImageTable, manifest: Manifest) -> "PictureList":
        """The images of a manifest; one that is in several splits is there once."""
        _, first = np.unique(images.ids.dictionary_encode().indices.to_numpy(), return_index=True)
        chosen = images.take(first.astype(np.int64))
        ids, paths = StringColumn(chosen.ids), StringColumn(chosen.paths)
        pictures = cls([], manifest.source, manifest.rows)._of_columns(ids, paths, chosen.embedded_row_I, chosen.root, chosen.split_I)
        pictures._splits = chosen.splits
        counts = replace(manifest.counts, joined=manifest.counts.joined + len(images) - len(first))
        pictures.skipped_rows, pictures.counts, pictures.notes = manifest.skipped, counts, manifest.notes
        return pictures

    def without(self, broken: np.ndarray) -> "PictureList":
        """The list without some images, by index; the order does not change."""
        remaining = np.setdiff1d(np.arange(self.num_images), broken)
        ids, paths = self.image_ids.take(remaining), self._paths.take(remaining)
        return self._of_columns(ids, paths, self._embedded_row_I[remaining], self._root, self._split_I[remaining])

    def split(self, image: int) -> str | None:
        """The split of an image, the first of several; None where the manifest has none."""
        return self._splits[self._split_I[image]]

    def _of_columns(
        self, ids: StringColumn, paths: StringColumn, embedded_row_I: np.ndarray, root: str, split_I: np.ndarray
    ) -> "PictureList":
        other = copy.copy(self)
        other.image_ids, other._paths, other._embedded_row_I, other._root = ids, paths, embedded_row_I, root
        other._split_I = split_I
        return other


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
            f"--images {folder}: no pictures in it or below it; expected files named {', '.join(sorted(picture_suffixes()))}"
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
            elif suffix in picture_suffixes():
                yield os.path.relpath(os.path.join(parent, name), folder)
            else:
                skipped.suffixes[suffix] += 1


def read_rows(
    source: str, *, image_root: str | None = None, columns: Mapping[str, str], split: str | None = None, skip_missing: bool = False
) -> PictureList:
    """The images of a manifest; its captions, if any, are not read.

    Args:
        source: whatever `eval.manifest.source.open_rows` takes.
        image_root: folder that paths are relative to; default: the manifest's.
        columns: our column name -> the manifest's own (image, id, split).
        split: only the rows of this split.
        skip_missing: leave out rows whose picture is not there, and list them.

    Raises:
        ManifestError: a row is wrong as `eval.manifest.manifest.read_manifest` has it; every fault at once, of the split's rows.
        UserError: the source cannot be read.
    """
    rows = open_rows(source, asked_mapping(columns), Path(image_root) if image_root is not None else None)
    num_known = len(rows.faults)
    mapping = map_columns(rows.columns, columns, with_captions=False)
    rows.mapping, rows.is_one_set = mapping.names, split is None
    faults = [Fault(where, "unreadable row", what) for where, what in rows.faults]
    for name in ("image", *(["split"] if split is not None else [])):
        if mapping.names[name] not in rows.columns:
            what = missing_column(name, rows.columns, columns)
            faults.append(Fault(rows.header_place, "unknown column", what))
    if faults:
        raise ManifestError(source, faults)
    rules = RowRules(skip_missing=skip_missing, is_one_set=rows.is_one_set, with_captions=False)
    paths = ImagePaths(Path(image_root) if image_root is not None else rows.folder)
    joiner = Joiner(paths, rows, faults, rules, (), ())
    for row in rows:
        if split is None or cell_text(row.where, "split", row.split, faults) == split:
            joiner.add(row)
    faults += [Fault(where, "unreadable row", what) for where, what in rows.faults[num_known:]]
    manifest = Manifest(source, rows, joiner.finish(), joiner.counts, joiner.skipped, mapping.notes)
    if what := wrong_root(list(joiner.missing), joiner.num_images, paths.image_root, rows.folder):
        faults = [fault for fault in faults if fault.kind != MISSING]
        raise ManifestError(source, [Fault(next(iter(joiner.missing.values())), "wrong image root", what), *faults])
    if not len(manifest.images) and not faults:
        faults.append(Fault(source, "empty", _nothing_found(manifest, split)))
    if faults:
        raise ManifestError(source, faults)
    return PictureList.of_manifest(manifest.images, manifest)


def _nothing_found(manifest: Manifest, split: str | None) -> str:
    """Why there is no image."""
    if manifest.skipped:
        return f"the picture of each of its {len(manifest.skipped):,} rows is missing"
    return "no rows" if split is None else f"no row has split {split!r}; leave --split out to take all"

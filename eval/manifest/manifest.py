"""From a manifest to images with captions and a split. Every fault is collected and named before anything else happens.

A manifest is a file, a folder, a glob or the id of a data set on the hub (see eval/manifest/source.py for which, and who reads each). What
comes out is the same for all: one ManifestImage per (split, picture), captions joined, in id order.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.captions import normalise
from eval.errors import UserError
from eval.manifest.paths import ImagePaths, PathFault
from eval.manifest.rows import EmbeddedImage, Row, RowSource, as_list, is_unicode
from eval.manifest.source import open_rows

COLUMNS = ("image", "captions", "caption", "id", "split", "group")
_SHOWN_PER_KIND = 20
_OWN_ID = "give each picture an id of its own"


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a manifest: where (file and line, or row), its kind (for counting), and what it is."""

    where: str
    kind: str
    what: str


class ManifestError(UserError):
    """All faults of a manifest at once."""

    def __init__(self, source: str, faults: list[Fault]) -> None:
        self.faults = faults
        counts = Counter(fault.kind for fault in faults)
        shown: Counter[str] = Counter()
        lines = [f"{source}: {len(faults)} fault(s): " + ", ".join(f"{count} x {kind}" for kind, count in counts.items())]
        for fault in faults:
            shown[fault.kind] += 1
            if shown[fault.kind] <= _SHOWN_PER_KIND:
                lines.append(f"  {fault.where}: {fault.what}")
        lines += [f"  ... and {count - _SHOWN_PER_KIND} more of: {kind}" for kind, count in counts.items() if count > _SHOWN_PER_KIND]
        super().__init__("\n".join(lines))


def caption_fault(where: str, value: object) -> Fault | None:
    """What is wrong with a value that should be a caption, or nothing."""
    if value is None:
        return Fault(where, "no caption", "the caption is null; write one, or take the row out")
    if not isinstance(value, str):
        return Fault(where, "caption is not text", f"expected text, found {type(value).__name__}: {value!r:.80}")
    if not is_unicode(value):
        return Fault(where, "not UTF-8 text", f"half a character (a lone surrogate) in the caption {value!r:.80}")
    if not normalise(value):
        return Fault(where, "empty caption", f"nothing is left of {value!r:.80} without blanks and punctuation; write words")
    return None


def cell_text(where: str, name: str, value: object, faults: list[Fault]) -> str | None:
    """The text or number of a cell of column `name`, as text; None of an empty one, and of another value, which goes to `faults`."""
    if value is None or value == "":
        return None
    if isinstance(value, (str, int)) and not isinstance(value, bool) and is_unicode(str(value)):
        return str(value)
    faults.append(Fault(where, f"{name} is not text", f"expected text, found {type(value).__name__}: {value!r:.80}"))
    return None


@dataclass(slots=True)
class ManifestImage:
    """One picture of one split with all its captions; `embedded` says where its bytes lie when it is not a file."""

    id: str
    split: str | None
    path: Path | None
    embedded: EmbeddedImage | None
    num_bytes: int
    group: str | None
    captions: list[str]
    where: str
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Additional columns: name -> one value for each caption."""
    texts: dict[str, list[list[str]]] = field(default_factory=dict)
    """Additional columns of texts: name -> a list for each caption."""


@dataclass
class Manifest:
    """A read manifest without faults."""

    source: str
    rows: RowSource
    images: list[ManifestImage]

    @property
    def splits(self) -> list[str | None]:
        """Names of the splits found, sorted; [None] when the manifest has no split column."""
        return sorted({image.split for image in self.images}, key=lambda split: (split is not None, split or ""))


def read_manifest(
    source: str | os.PathLike[str],
    *,
    image_root: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    require_splits: Iterable[str] = (),
    slice_by: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> Manifest:
    """Read a manifest whole and check every row.

    Args:
        source: file, folder, glob or hub id (see the module).
        image_root: folder that image paths are relative to; default: the manifest's folder.
        columns: our column name -> the manifest's own name for it.
        require_splits: names of splits that must be there.
        slice_by: additional columns to slice by, by the manifest's own names: text or numbers.
        keep: additional columns of texts, by the manifest's own names: a text, a list of texts, or nothing in each row.

    Raises:
        ManifestError: with every fault found.
        UserError: the source does not exist or is of no known kind.
    """
    mapping = _column_mapping(columns or {})
    additional = {f"slice by {name}": name for name in slice_by} | {f"keep {name}": name for name in keep}
    rows = open_rows(str(source), mapping | additional)
    faults = [Fault(where, "unreadable row", what) for where, what in rows.faults]
    if not rows.columns and not faults:
        raise ManifestError(str(source), [Fault(str(source), "empty", "the manifest has no rows and no column names")])
    faults += _column_faults(rows, mapping, columns or {})
    if faults and not rows.has_usable_columns(mapping):
        raise ManifestError(str(source), faults)
    faults += [
        Fault(rows.header_place, "unknown column", f"{what} {name!r} were asked for; columns found: {rows.columns}")
        for what, names in (("slices by", slice_by), ("texts of", keep))
        for name in names
        if name not in rows.columns
    ]
    joiner = _Joiner(ImagePaths(Path(image_root) if image_root is not None else rows.folder), rows, faults, slice_by, keep)
    for row in rows:
        joiner.add(row)
    manifest = Manifest(str(source), rows, sorted(joiner.finish(), key=lambda image: image.id))
    faults += _split_faults(manifest, mapping["split"], require_splits)
    if not manifest.images and not faults:
        faults.append(Fault(str(source), "empty", "the manifest has no rows"))
    if faults:
        raise ManifestError(str(source), faults)
    return manifest


def _split_faults(manifest: Manifest, column: str, required: Iterable[str]) -> list[Fault]:
    """A split that must be there and is not; rows without a split where others have one."""
    found, faults = manifest.splits, list[Fault]()
    for split in dict.fromkeys(required):
        if split not in found:
            none = "none among the rows without faults" if column in manifest.rows.columns else "none: there is no column `split`"
            names = ", ".join(repr(name) for name in found if name is not None) or none
            remedy = "Name one of these; where there is none, leave --split out (null in a job)"
            faults.append(Fault(manifest.source, "no such split", f"no row has split {split!r}; splits found: {names}. {remedy}"))
    if len(found) > 1 and found[0] is None:
        named = ", ".join(repr(name) for name in found[1:])
        what = f"this row has no split, others have {named}; give every row one (rows of a split that no job names are left alone)"
        faults += [Fault(image.where, "no split", what) for image in manifest.images if image.split is None]
    return faults


def _column_mapping(columns: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        remedy = f"it maps any of {list(COLUMNS)} to the manifest's own names"
        raise UserError(f"data.columns (--column): {unknown} are not columns of ours; {remedy}")
    return {name: columns.get(name, name) for name in COLUMNS}


def _column_faults(rows: RowSource, mapping: Mapping[str, str], asked: Mapping[str, str]) -> list[Fault]:
    found = rows.columns
    whats = [
        f"data.columns maps {ours} to {theirs!r}, which is not there; columns found: {found}"
        for ours, theirs in asked.items()
        if theirs not in found
    ]
    if mapping["image"] not in found and "image" not in asked:
        whats.append(f"no column {mapping['image']!r}; columns found: {found}. Name the right one: data.columns.image=NAME")
    if mapping["captions"] not in found and mapping["caption"] not in found and not {"caption", "captions"} & set(asked):
        remedy = "Name the right one: data.columns.caption=NAME (text) or data.columns.captions=NAME (list)"
        whats.append(f"no column 'caption' or 'captions'; columns found: {found}. {remedy}")
    return [Fault(rows.header_place, "unknown column", what) for what in whats]


@dataclass
class _Joiner:
    """Checks rows one by one and joins those of one picture."""

    paths: ImagePaths
    rows: RowSource
    faults: list[Fault]
    slice_by: Sequence[str] = ()
    keep: Sequence[str] = ()
    images: dict[tuple[str | None, str], ManifestImage] = field(default_factory=dict)
    path_of_id: dict[str, tuple[str, str]] = field(default_factory=dict)
    id_of_path: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Check one row and join it; what is wrong with it goes to `faults`."""
        captions = self._captions(row)
        located = self._locate(row)
        text = {name: cell_text(row.where, name, getattr(row, name), self.faults) for name in ("id", "split", "group")}
        columns = {name: [self._value(row, name)] * len(captions) for name in self.slice_by}
        texts = {name: [self._good(row, as_list(row.record.get(name)), f"column {name!r}: ")] * len(captions) for name in self.keep}
        if located is None:
            return
        key, path, num_bytes = located
        image_id = text["id"] or key
        known_key, known_where = self.path_of_id.setdefault(image_id, (key, row.where))
        if known_key != key:
            what = f"id {image_id!r} names {key!r} here and {known_key!r} at {known_where}; {_OWN_ID}"
            self.faults.append(Fault(row.where, "id twice", what))
            return
        known_id, known_where = self.id_of_path.setdefault(key, (image_id, row.where))
        if known_id != image_id:
            what = f"image {key!r} has id {image_id!r} here and {known_id!r} at {known_where}"
            remedy = "If the column numbers rows or captions, let the path be the id: data.columns.id=NAME_OF_THE_IMAGE_COLUMN"
            self.faults.append(Fault(row.where, "two ids", f"{what}. {remedy}"))
        image = self.images.get((text["split"], key))
        if image is None:
            self.images[text["split"], key] = ManifestImage(
                image_id, text["split"], path, row.embedded, num_bytes, text["group"], captions, row.where, columns, texts
            )
            return
        if row.embedded is not None and image.embedded is not None and not self._same_picture(row.embedded, image.embedded):
            self.faults.append(Fault(row.where, "id twice", f"{key!r} names another picture at {image.where}; {_OWN_ID}"))
        if image.group != text["group"]:
            self.faults.append(
                Fault(row.where, "two groups", f"image {key!r} has group {text['group']!r} here and {image.group!r} at {image.where}")
            )
        image.captions += captions
        for name, values in columns.items():
            image.columns[name] += values
        for name, lists in texts.items():
            image.texts[name] += lists

    def finish(self) -> list[ManifestImage]:
        """The joined images; those that lost every caption to faults are left out."""
        return [image for image in self.images.values() if image.captions]

    def _same_picture(self, one: EmbeddedImage, other: EmbeddedImage) -> bool:
        return one.num_bytes == other.num_bytes and self.rows.image_bytes(one.row) == self.rows.image_bytes(other.row)

    def _captions(self, row: Row) -> list[str]:
        values: list[Any] = row.captions if isinstance(row.captions, list) else [row.captions]
        if not values:
            self.faults.append(Fault(row.where, "no caption", "the list of captions is empty; write one, or take the row out"))
        return self._good(row, values)

    def _good(self, row: Row, values: list[Any], column: str = "") -> list[str]:
        """The values that are captions; `column` begins what is wrong with the others."""
        found = [(value, caption_fault(row.where, value)) for value in values]
        self.faults += [replace(fault, what=f"{column}{fault.what}") for _, fault in found if fault]
        return [value for value, fault in found if not fault]

    def _value(self, row: Row, name: str) -> str | float | None:
        value = row.record.get(name)
        return value if isinstance(value, (float, bool)) else cell_text(row.where, name, value, self.faults)

    def _locate(self, row: Row) -> tuple[str, Path | None, int] | None:
        """(key, path, size in bytes) of a row's picture, or None after a fault."""
        if row.embedded is not None:
            return row.embedded.key, None, row.embedded.num_bytes
        try:
            return self.paths.find(row.image)
        except PathFault as fault:
            self.faults.append(Fault(row.where, fault.kind, str(fault)))
            return None

"""From a manifest to images with captions and a split. Every fault is collected and named before anything else happens.

A manifest is a file, a folder, a glob or the id of a data set on the hub (see eval/manifest/source.py for which, and who reads each). What
comes out is the same for all: the images of each split, captions joined, in id order, as columns (eval/manifest/image_table.py).
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from eval.manifest.columns import COLUMNS, asked_mapping, check_asked, column_faults, map_columns, with_guesses
from eval.manifest.faults import Fault, ManifestError, caption_fault, cell_text
from eval.manifest.formats.hub import data_revision
from eval.manifest.image_root import wrong_root
from eval.manifest.image_table import ImageTable, ManifestImage
from eval.manifest.joiner import PLAIN, Joiner, RowCounts, RowRules
from eval.manifest.memory import release_unused
from eval.manifest.names import called
from eval.manifest.paths import MISSING, ImagePaths, PathFault
from eval.manifest.rows import RowSource
from eval.manifest.skipped import Skipped, skipped_in_words, skipped_record
from eval.manifest.source import open_rows

_SHOWN_REASONS = 5
_NUM_GUESSED_BY = 200
_SHOWN_FILES = 10
__all__ = [
    "COLUMNS",
    "Fault",
    "Manifest",
    "ManifestError",
    "ManifestImage",
    "RowRules",
    "Skipped",
    "caption_fault",
    "cell_text",
    "left_out_line",
    "read_manifest",
]


@dataclass
class Manifest:
    """A read manifest without faults.

    Attributes:
        images: in id order.
        counts: what became of its rows.
        skipped: the rows that were left out as asked.
        notes: what was found out by the names of its columns, in lines.
        remarks: what else a person should know of how it was read, in whole lines.
        has_unplaced: images of no split, which came after the splits were made, are there.
    """

    source: str
    rows: RowSource
    images: ImageTable
    counts: RowCounts = field(default_factory=RowCounts)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    has_unplaced: bool = False

    @property
    def splits(self) -> list[str | None]:
        """Names of the splits found, sorted; [None] when the manifest has no split column."""
        return list(self.images.split_counts)

    def lines(self) -> list[str]:
        """What a person should know of how it was read: its commit on the hub, columns taken by their names, rows that are no new image."""
        counts, lines = self.counts, [*self.remarks, *(f"columns   {note}" for note in self.notes)]
        if counts.with_both:
            names = self.rows.mapping
            which = f"captions from column {names['captions']!r}, not from {names['caption']!r}"
            lines.append(f"columns   {which}, of {counts.with_both:,} row{'s' if counts.with_both > 1 else ''} with both")
        parts = [f"{counts.joined:,} joined to an earlier row's image"] if counts.joined else []
        parts += [skipped_in_words(skipped_record(self.skipped))] if self.skipped else []
        if parts:
            lines.append(f"rows      {counts.given:,} in {self.source}: {len(self.images):,} images, {', '.join(parts)}")
        if commit := data_revision(self.source):
            lines.insert(0, f"commit    {self.source} is read at {commit} of the hub")
        left_out = left_out_line(self.source, self.rows)
        return lines + ([f"left out  {left_out}"] if left_out else [])


def read_manifest(
    source: str | os.PathLike[str],
    *,
    image_root: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    require_splits: Iterable[str] = (),
    slice_by: Sequence[str] = (),
    keep: Sequence[str] = (),
    rules: RowRules = PLAIN,
) -> Manifest:
    """Read a manifest whole and check every row.

    Args:
        source: file, folder, glob or hub id (see the module).
        image_root: folder that image paths are relative to; default: the manifest's folder.
        columns: our column name -> the manifest's own name for it.
        require_splits: names of splits that must be there.
        slice_by: additional columns to slice by, by the manifest's own names: text or numbers.
        keep: additional columns of texts, by the manifest's own names: a text, a list of texts, or nothing in each row.
        rules: how rows are read.

    Raises:
        ManifestError: with every fault found.
        UserError: the source does not exist or is of no known kind.
    """
    asked = dict(columns or {})
    check_asked(asked)
    additional = {f"slice by {name}": name for name in slice_by} | {f"keep {name}": name for name in keep}
    root = Path(image_root) if image_root is not None else None
    rows = open_rows(str(source), asked_mapping(asked) | additional, root)
    num_known = len(rows.faults)
    faults = [Fault(where, "unreadable row", what) for where, what in rows.faults]
    if not rows.columns and not faults:
        raise ManifestError(str(source), [Fault(str(source), "empty", "the manifest has no rows and no column names")])

    def first() -> list[Mapping[str, Any]]:
        again = open_rows(str(source), asked_mapping(asked) | {name: name for name in rows.columns}, root)
        return [row.record for row in islice(again, _NUM_GUESSED_BY)]

    mapping = with_guesses(map_columns(rows.columns, asked), rows.columns, asked, first)
    rows.mapping, rows.is_one_set = mapping.names | additional, rules.is_one_set
    faults += [Fault(rows.header_place, "unknown column", what) for what in column_faults(rows.columns, mapping, asked)]
    paths = ImagePaths(root if root is not None else rows.folder)
    if faults and not rows.has_usable_columns(mapping.names):
        raise ManifestError(str(source), faults + (_picture_faults(rows, paths, rules) if mapping.names["image"] in rows.columns else []))
    faults += [
        Fault(rows.header_place, "unknown column", f"{what} {name!r} were asked for; columns found: {rows.columns}")
        for what, names in (("slices by", slice_by), ("texts of", keep))
        for name in names
        if name not in rows.columns
    ]
    joiner = Joiner(paths, rows, faults, rules, slice_by, keep)
    joiner.add_all()
    faults += [Fault(where, "unreadable row", what) for where, what in rows.faults[num_known:]]
    manifest = Manifest(str(source), rows, joiner.finish(), joiner.counts, joiner.skipped, mapping.notes)
    if what := wrong_root(list(joiner.missing), joiner.num_images, paths.image_root, rows.folder):
        faults = [fault for fault in faults if fault.kind != MISSING]
        raise ManifestError(str(source), [Fault(next(iter(joiner.missing.values())), "wrong image root", what), *faults])
    if len(joiner.missing) < joiner.num_images:
        faults = _missing_only(faults, len(joiner.missing))
    undivided = rules.divide(manifest) if rules.divide is not None and not faults else []
    if (manifest.counts.given or not faults) and not undivided and (rules.divide is None or manifest.splits != [None]):
        faults += _split_faults(manifest, mapping.names["split"], require_splits)
    faults += undivided
    if not len(manifest.images) and not faults:
        skipped = f"the picture of each of its {manifest.counts.given:,} rows is missing" if manifest.skipped else ""
        faults.append(Fault(str(source), "empty", skipped or "the manifest has no rows"))
    if faults:
        raise ManifestError(str(source), faults)
    del joiner
    release_unused()
    return manifest


def _missing_only(faults: list[Fault], num_missing: int) -> list[Fault]:
    """The faults, where the image root is right, for most pictures are below it: the first of a missing one has the remedy for all."""
    told, remedy = list[Fault](), f"To leave out the rows of the {num_missing:,} picture(s) that are missing: {called('skip_missing')}"
    for fault in faults:
        if fault.kind == MISSING:
            fact = fault.what.rpartition(" Is ")[0] or fault.what
            fault, remedy = replace(fault, what=f"{fact} {remedy}".rstrip()), ""
        told.append(fault)
    return told


def _picture_faults(rows: RowSource, paths: ImagePaths, rules: RowRules) -> list[Fault]:
    """What is wrong with the pictures of rows whose captions are in no known column."""
    faults, missing, found = list[Fault](), dict[str, str](), set[str]()
    for row in rows:
        try:
            found.add(row.embedded.key if row.embedded is not None else paths.find(row.image)[0])
        except PathFault as fault:
            if fault.kind == MISSING:
                missing.setdefault(paths.relative(row.image), row.where)
            if fault.kind != MISSING or not rules.skip_missing:
                faults.append(Fault(row.where, fault.kind, str(fault)))
    if what := wrong_root(list(missing), len(found), paths.image_root, rows.folder):
        others = [fault for fault in faults if fault.kind != MISSING]
        return [Fault(next(iter(missing.values())), "wrong image root", what), *others]
    return faults


def left_out_line(source: str, rows: RowSource) -> str:
    """How many rows of a manifest are no pairs, why, where the first of each reason is, and which files are not read; empty: none."""
    parts = [_left_out_rows(rows)] if rows.left_out else []
    if rows.not_read:
        more = len(rows.not_read) - _SHOWN_FILES
        parts.append(f"not read: {', '.join(rows.not_read[:_SHOWN_FILES])}{f' and {more:,} more' if more > 0 else ''}")
    return f"{source}: {'; '.join(parts)}" if parts else ""


def _left_out_rows(rows: RowSource) -> str:
    counts = Counter(why for _, why in rows.left_out)
    first = {why: where for where, why in reversed(rows.left_out)}
    shown = [f"{count:,} x {why} (first: {first[why]})" for why, count in counts.most_common(_SHOWN_REASONS)]
    others = f"; {len(counts) - _SHOWN_REASONS:,} other reasons" if len(counts) > _SHOWN_REASONS else ""
    return f"{len(rows.left_out):,} row(s) are left out: {'; '.join(shown)}{others}"


def _split_faults(manifest: Manifest, column: str, required: Iterable[str]) -> list[Fault]:
    """A split that must be there and is not; rows without a split where others have one."""
    found, faults = manifest.splits, list[Fault]()
    for split in dict.fromkeys(required):
        if split not in found:
            none = "none among the rows without faults" if column in manifest.rows.columns else "none: there is no column `split`"
            names = ", ".join(repr(name) for name in found if name is not None) or none
            remedy = f"Name one of these with {called('splits')}; where there is none, {called('no_split')}"
            if found == [None] and column not in manifest.rows.columns:
                names, remedy = none, called("without_splits").format(splits=called("splits"))
            faults.append(Fault(manifest.source, "no such split", f"no row has split {split!r}; splits found: {names}. {remedy}"))
    if len(found) > 1 and found[0] is None and not manifest.has_unplaced:
        named = ", ".join(repr(name) for name in found[1:])
        what = f"this row has no split, others have {named}; give every row one (rows of a split that no job names are left alone)"
        unnamed = manifest.images.of_split(None)
        faults += [Fault(unnamed.places.text(image), "no split", what) for image in range(len(unnamed))]
    return faults

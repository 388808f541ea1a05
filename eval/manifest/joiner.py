"""Checks the rows of a manifest one by one, and joins those of one picture into an ImageTable."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from eval.captions import normalise, normalised_hash
from eval.manifest.faults import Fault, caption_fault, cell_text
from eval.manifest.formats.columnar import join_columns
from eval.manifest.formats.lists import as_list
from eval.manifest.image_table import ImageTable, PlaceColumn, StringBuilder
from eval.manifest.names import column_called
from eval.manifest.paths import MISSING, ImagePaths, PathFault
from eval.manifest.rows import EmbeddedImage, Row, RowSource, is_unicode
from eval.manifest.skipped import Skipped

_OWN_ID = "give each picture an id of its own"


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """How rows are read.

    Attributes:
        skip_missing: leave out rows whose picture is not there, and list them; else they are faults.
        is_one_set: rows of all splits are one set, so that embedded pictures of one name are told apart in different splits too.
        with_captions: whether captions are read; else images are there without them.
        divide: gives the images of a manifest their splits (eval/manifest/made_split.py) and says what is wrong; not called where rows have
            faults.
    """

    skip_missing: bool = False
    is_one_set: bool = False
    with_captions: bool = True
    divide: "Callable[[Any], list[Fault]] | None" = None


PLAIN = RowRules()


@dataclass
class RowCounts:
    """What became of the rows of a manifest: given = images + joined + skipped, where nothing is wrong with any.

    Attributes:
        given: rows with anything in them.
        joined: whose picture an earlier row of the same split had named.
        skipped: left out as asked.
        with_both: that have a caption in the column `captions`, which is read, and one in `caption`, which is not.
    """

    given: int = 0
    joined: int = 0
    skipped: int = 0
    with_both: int = 0


class _Names:
    """Which of two names belongs to which, and the row that said so first: of a picture's id and its key, each the other's."""

    def __init__(self) -> None:
        self._same: dict[str, int] = {}  # most pictures have no other id: one entry for both directions
        self._key_of_id: dict[str, tuple[str, int]] = {}
        self._id_of_key: dict[str, tuple[str, int]] = {}

    def note(self, image_id: str, key: str, row: int) -> tuple[tuple[str, int], tuple[str, int]]:
        """Note what a row says, unless the id is another picture's.

        Returns:
            The key of the picture that has the id, and the id that the key has, each with the row that said so first.
        """
        if image_id == key and not self._key_of_id:  # no picture has another id than its key
            known = key, self._same.setdefault(key, row)
            return known, known
        of_id = self._key_of_id.get(image_id) or self._own(image_id)
        if of_id is not None and of_id[0] != key:
            return of_id, (image_id, row)
        of_key = self._id_of_key.get(key) or self._own(key)
        if image_id == key:
            self._same.setdefault(key, row)
        else:
            self._key_of_id.setdefault(image_id, (key, row))
            if of_key is None:
                self._id_of_key[key] = image_id, row
        return of_id or (key, row), of_key or (image_id, row)

    def _own(self, name: str) -> tuple[str, int] | None:
        row = self._same.get(name)
        return None if row is None else (name, row)


class _ImageColumns:
    """What is known of each image, in the order of the rows that named it first."""

    def __init__(self) -> None:
        self.ids, self.paths = StringBuilder(), StringBuilder()
        self.splits, self.groups, self.num_bytes, self.embedded_rows, self.rows = (array("q") for _ in range(5))


class _CaptionColumns:
    """What is known of each caption, in the order of the rows."""

    def __init__(self, slice_by: Sequence[str], keep: Sequence[str]) -> None:
        self.texts, self.hashes, self.images = StringBuilder(), array("q"), array("q")
        self.values: dict[str, list[Any]] = {name: [] for name in slice_by}
        self.lists: dict[str, list[list[str]]] = {name: [] for name in keep}


class Joiner:
    """Checks rows one by one and joins those of one picture.

    Attributes:
        counts: of the rows so far.
        skipped: rows that were left out as asked.
        missing: path below the image root of every picture that is not there, and the first row that names it.
    """

    def __init__(
        self, paths: ImagePaths, rows: RowSource, faults: list[Fault], rules: RowRules, slice_by: Sequence[str], keep: Sequence[str]
    ) -> None:
        """Begin with no row.

        Args:
            faults: what is wrong with a row goes there.
            slice_by: additional columns of text or numbers.
            keep: additional columns of texts.
        """
        self.counts = RowCounts()
        self.skipped: list[Skipped] = []
        self.missing: dict[str, str] = {}
        self._paths, self._rows, self._faults, self._rules = paths, rows, faults, rules
        self._caption, self._list = rows.mapping["caption"], rows.mapping["captions"]
        self._names, self._places = _Names(), PlaceColumn()
        self._images, self._captions = _ImageColumns(), _CaptionColumns(slice_by, keep)
        self._numbers: dict[str | None, dict[str, int]] = {}
        """Of the images of each split, by key."""
        self._splits: dict[str | None, int] = {}
        self._groups: dict[str, int] = {}
        self._known_values: dict[str, str] = {}
        self._whole: ImageTable | None = None

    @property
    def num_images(self) -> int:
        """Images so far."""
        return len(self._images.rows) if self._whole is None else len(self._whole)

    def add_all(self) -> None:
        """Check and join every row: a column at a time where that is plain, else one by one."""
        is_plain = not (self._captions.values or self._captions.lists or self._faults) and self._rules.with_captions
        if is_plain and (columns := self._rows.as_columns()) is not None:
            self._whole = join_columns(columns, self._rows.mapping, self._paths)
            if self._whole is not None:
                self.counts.given = len(columns.number_R)
                self.counts.joined = self.counts.given - len(self._whole)
                self._rows.drop()
                return
            del columns
        for row in self._rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Check one row and join it; what is wrong with it goes to the faults."""
        self.counts.given += 1
        number, num_faults = len(self._places), len(self._faults)
        self._places.append(row.place)
        if row.record.get(self._caption) not in (None, "", []) and row.record.get(self._list) is not None:
            self.counts.with_both += 1
        texts, hashes = self._captions_of(row)
        key = None
        try:
            key, num_bytes = self._locate(row)
        except PathFault as fault:
            if fault.kind == MISSING:
                self.missing.setdefault(self._paths.relative(row.image), row.where)
            if fault.kind == MISSING and self._rules.skip_missing:
                del self._faults[num_faults:]
                self._skip(row, fault.kind)
                return
            self._faults.append(Fault(row.where, fault.kind, str(fault)))
        id_, split, group = self._cell(row, "id", row.id), self._cell(row, "split", row.split), self._cell(row, "group", row.group)
        values = {name: self._value(row, name) for name in self._captions.values} if self._captions.values else {}
        kept_names = self._captions.lists
        lists = {name: self._good(row, as_list(row.record.get(name)), f"column {name!r}: ") for name in kept_names} if kept_names else {}
        if key is None or not self._is_named(row, id_ or key, key, number):
            return
        group_code = -1 if group is None else self._groups.setdefault(group, len(self._groups))
        images_of_split = self._numbers.setdefault(split, {})
        image = images_of_split.get(key)
        if image is None:
            if self._rules.is_one_set and (other := self._image_of(key)) is not None:
                self._check_same_picture(row, key, other)
            image = images_of_split[key] = self.num_images
            self._images.ids.extend((id_ or key,))
            self._images.paths.extend((key if row.embedded is None else "",))
            self._images.splits.append(self._splits.setdefault(split, len(self._splits)))
            self._images.groups.append(group_code)
            self._images.num_bytes.append(num_bytes)
            self._images.embedded_rows.append(-1 if row.embedded is None else row.embedded.row)
            self._images.rows.append(number)
        else:
            self.counts.joined += 1
            self._check_same_picture(row, key, image)
            self._check_same_group(row, key, image, group_code)
        self._captions.texts.extend(texts)
        self._captions.hashes.extend(hashes)
        self._captions.images.extend([image] * len(texts))
        for name, value in values.items():
            self._captions.values[name] += [value] * len(texts)
        for name, kept in lists.items():
            self._captions.lists[name] += [kept] * len(texts)

    def finish(self) -> ImageTable:
        """The joined images; those that lost every caption to faults are left out, where captions are read."""
        if self._whole is not None:
            return self._whole
        images, captions = self._images, self._captions
        image_C = np.frombuffer(captions.images, dtype=np.int64)
        order_C = np.argsort(image_C, kind="stable")
        counts_I = np.bincount(image_C, minlength=self.num_images)
        ids, paths, texts = images.ids.finish(), images.paths.finish(), captions.texts.finish()
        is_ordered = np.array_equal(order_C, np.arange(len(order_C)))
        table = ImageTable(
            ids=ids,
            paths=ids if ids.equals(paths) else paths,
            root=self._paths.prefix,
            embedded_row_I=np.array(images.embedded_rows),
            num_bytes_I=np.array(images.num_bytes),
            splits=list(self._splits),
            split_I=np.array(images.splits),
            groups=list(self._groups),
            group_I=np.array(images.groups),
            places=self._places.take(np.array(images.rows)),
            caption_offsets=np.concatenate([[0], np.cumsum(counts_I)]).astype(np.int64),
            captions=texts if is_ordered else texts.take(pa.array(order_C)),
            caption_hash_C=np.array(captions.hashes)[order_C],
            columns={name: [values[caption] for caption in order_C] for name, values in captions.values.items()},
            texts={name: [lists[caption] for caption in order_C] for name, lists in captions.lists.items()},
        )
        return (table.take(np.flatnonzero(counts_I)) if self._rules.with_captions else table).in_id_order()

    def _captions_of(self, row: Row) -> tuple[list[str], list[int]]:
        """The captions of a row with the hash of each; what is wrong with the others goes to the faults."""
        if not self._rules.with_captions:
            return [], []
        values: list[Any] = row.captions if isinstance(row.captions, list) else [row.captions]
        if not values:
            self._faults.append(Fault(row.where, "no caption", "the list of captions is empty; write one, or take the row out"))
        texts, hashes = [], []
        for value in values:
            normalised = normalise(value) if isinstance(value, str) and (value.isascii() or is_unicode(value)) else ""
            if normalised:
                texts.append(value)
                hashes.append(normalised_hash(normalised))
            elif fault := caption_fault(row.where, value):
                self._faults.append(fault)
        return texts, hashes

    def _good(self, row: Row, values: list[Any], column: str) -> list[str]:
        """The values that are captions; `column` begins what is wrong with the others."""
        found = [(value, caption_fault(row.where, value)) for value in values]
        self._faults += [replace(fault, what=f"{column}{fault.what}") for _, fault in found if fault]
        return [value for value, fault in found if not fault]

    def _cell(self, row: Row, name: str, value: object) -> str | None:
        return None if value is None else cell_text(row.where, name, value, self._faults)

    def _value(self, row: Row, name: str) -> str | float | None:
        value = row.record.get(name)
        if isinstance(value, (float, bool)):
            return value
        text = self._cell(row, name, value)
        return text if text is None else self._known_values.setdefault(text, text)

    def _locate(self, row: Row) -> tuple[str, int]:
        """(key, size in bytes) of a row's picture; a file is asked about once.

        Raises:
            PathFault: it cannot be used.
        """
        if row.embedded is not None:
            return row.embedded.key, row.embedded.num_bytes
        key = self._paths.relative(row.image)
        image = self._image_of(key)
        return key, self._paths.num_bytes(key) if image is None else self._images.num_bytes[image]

    def _image_of(self, key: str) -> int | None:
        """An image of this key, of any split."""
        for images in self._numbers.values():
            if key in images:
                return images[key]
        return None

    def _is_named(self, row: Row, image_id: str, key: str, number: int) -> bool:
        """Whether the id is this picture's alone; else, and where the picture has another, that goes to the faults."""
        (known_key, key_row), (known_id, id_row) = self._names.note(image_id, key, number)
        if known_key != key:
            what = f"id {image_id!r} names {key!r} here and {known_key!r} at {self._places.text(key_row)}; {_OWN_ID}"
            self._faults.append(Fault(row.where, "id twice", what))
            return False
        if known_id != image_id:
            what = f"image {key!r} has id {image_id!r} here and {known_id!r} at {self._places.text(id_row)}"
            mapped = column_called("id", "NAME_OF_THE_IMAGE_COLUMN")
            remedy = f"If the column numbers rows or captions, let the path be the id: {mapped}"
            self._faults.append(Fault(row.where, "two ids", f"{what}. {remedy}"))
        return True

    def _check_same_picture(self, row: Row, key: str, image: int) -> None:
        """The bytes of a row have to be those of the first row with its key."""
        embedded_row, num_bytes = self._images.embedded_rows[image], self._images.num_bytes[image]
        if row.embedded is not None and embedded_row >= 0 and not self._is_same_picture(row.embedded, embedded_row, num_bytes):
            first = self._places.text(self._images.rows[image])
            self._faults.append(Fault(row.where, "id twice", f"{key!r} names another picture at {first}; {_OWN_ID}"))

    def _check_same_group(self, row: Row, key: str, image: int, group: int) -> None:
        """The group of a row has to be that of the first row of its image."""
        if (first_group := self._images.groups[image]) != group:
            here, there = ([None, *self._groups][code + 1] for code in (group, first_group))
            first = self._places.text(self._images.rows[image])
            self._faults.append(Fault(row.where, "two groups", f"image {key!r} has group {here!r} here and {there!r} at {first}"))

    def _is_same_picture(self, one: EmbeddedImage, other_row: int, num_bytes: int) -> bool:
        return one.num_bytes == num_bytes and self._rows.image_bytes(one.row) == self._rows.image_bytes(other_row)

    def _skip(self, row: Row, reason: str) -> None:
        self.counts.skipped += 1
        cells = (("id", row.id), ("split", row.split), ("group", row.group))
        name, split, group = (cell_text(row.where, column, value, []) for column, value in cells)
        self.skipped.append(Skipped(row.where, name or self._paths.relative(row.image), reason, split, group))

"""The images of a manifest as columns, in Arrow and numpy: a million of them are a few buffers, not a million objects.

Shape letters: I images, C captions, R rows of the manifest.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.captions import caption_hash
from eval.manifest.memory import compact, mapped, mapped_strings
from eval.manifest.rows import EmbeddedImage, Place

_STRINGS_AT_ONCE = 16384


@dataclass(frozen=True, slots=True)
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


class StringBuilder:
    """Collects strings one by one into Arrow buffers."""

    def __init__(self) -> None:
        self._strings: list[str] = []
        self._blocks: list[pa.Array] = []

    def extend(self, strings: Iterable[str]) -> None:
        """Add some."""
        self._strings.extend(strings)
        if len(self._strings) >= _STRINGS_AT_ONCE:
            self._flush()

    def finish(self) -> pa.Array:
        """All of them."""
        self._flush()
        return pa.concat_arrays(self._blocks)

    def _flush(self) -> None:
        self._blocks.append(_strings(self._strings))
        self._strings.clear()


class PlaceColumn:
    """Places of rows: the number of each, and the names of files or tables once."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._codes: dict[str, int] = {}
        self._name_R: array[int] | np.ndarray = array("q")
        self._number_R: array[int] | np.ndarray = array("q")

    @classmethod
    def of(cls, names: list[str], name_R: np.ndarray, number_R: np.ndarray) -> "PlaceColumn":
        """Places by the number of each one's name among `names`, and its own; none can be added."""
        column = cls()
        column._names, column._name_R, column._number_R = names, compact(name_R), mapped(compact(number_R))
        return column

    def __len__(self) -> int:
        return len(self._name_R)

    def append(self, place: Place | str) -> None:
        """Add one."""
        assert isinstance(self._name_R, array) and isinstance(self._number_R, array)
        name, number = (place, -1) if isinstance(place, str) else place
        code = self._codes.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        self._name_R.append(code)
        self._number_R.append(number)

    def text(self, row: int) -> str:
        """One for messages: file and line, or row."""
        name, number = self._names[int(self._name_R[row])], int(self._number_R[row])
        return name if number < 0 else str(Place(name, number))

    def take(self, indices: np.ndarray) -> "PlaceColumn":
        """Those at some indices, in this order."""
        return PlaceColumn.of(self._names, *(np.asarray(numbers)[indices] for numbers in (self._name_R, self._number_R)))


@dataclass(frozen=True, kw_only=True)
class ImageTable(Sequence[ManifestImage]):
    """The images of a manifest in id order; one taken out is a ManifestImage.

    Attributes:
        paths: below `root`, empty where there is no file; the ids' own column where every image is named by its path.
        root: what every path begins with.
        embedded_row_I: the row with the bytes, -1 where they are in no row.
        splits, split_I: names, and the place of each image's among them.
        groups, group_I: names, and the place of each image's among them; -1: it has none.
        captions: image after image, those of i at caption_offsets[i]:caption_offsets[i + 1].
        caption_hash_C: `eval.captions.caption_hash` of each.
        columns, texts: as of ManifestImage, a value or list for each caption.
    """

    ids: pa.Array
    paths: pa.Array
    root: str
    embedded_row_I: np.ndarray
    num_bytes_I: np.ndarray
    splits: Sequence[str | None]
    split_I: np.ndarray
    groups: Sequence[str]
    group_I: np.ndarray
    places: PlaceColumn
    caption_offsets: np.ndarray
    captions: pa.Array
    caption_hash_C: np.ndarray
    columns: dict[str, list[Any]]
    texts: dict[str, list[list[str]]]

    def __post_init__(self) -> None:
        for name in ("embedded_row_I", "num_bytes_I", "split_I", "group_I"):
            object.__setattr__(self, name, compact(getattr(self, name)))

    def mapped(self) -> "ImageTable":
        """The same images, with what is large in mapped files (eval/manifest/memory.py)."""
        ids = mapped_strings(self.ids)
        return replace(
            self,
            ids=ids,
            paths=ids if self.paths is self.ids else mapped_strings(self.paths),
            embedded_row_I=mapped(self.embedded_row_I),
            num_bytes_I=mapped(self.num_bytes_I),
            split_I=mapped(self.split_I),
            group_I=mapped(self.group_I),
            caption_offsets=mapped(self.caption_offsets),
            captions=mapped_strings(self.captions),
            caption_hash_C=mapped(self.caption_hash_C),
        )

    @classmethod
    def of(cls, images: Iterable[ManifestImage]) -> "ImageTable":
        """The table of some images, in any order."""
        ordered = sorted(images, key=lambda image: image.id)
        splits: dict[str | None, int] = {}
        groups: dict[str, int] = {}
        places = PlaceColumn()
        for image in ordered:
            places.append(image.where)
        return cls(
            ids=_strings([image.id for image in ordered]),
            paths=_strings([str(image.path or "") for image in ordered]),
            root="",
            embedded_row_I=_int64(-1 if image.embedded is None else image.embedded.row for image in ordered),
            num_bytes_I=_int64(image.num_bytes for image in ordered),
            split_I=_int64(splits.setdefault(image.split, len(splits)) for image in ordered),
            splits=list(splits),
            group_I=_int64(-1 if image.group is None else groups.setdefault(image.group, len(groups)) for image in ordered),
            groups=list(groups),
            places=places,
            caption_offsets=_int64([0, *np.cumsum([len(image.captions) for image in ordered])]),
            captions=_strings([caption for image in ordered for caption in image.captions]),
            caption_hash_C=_int64(caption_hash(caption) for image in ordered for caption in image.captions),
            columns={name: [v for image in ordered for v in image.columns[name]] for name in (ordered[0].columns if ordered else ())},
            texts={name: [v for image in ordered for v in image.texts[name]] for name in (ordered[0].texts if ordered else ())},
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> ManifestImage, slice -> list[ManifestImage]
        if isinstance(index, slice):
            return [self[image] for image in range(len(self))[index]]
        image = range(len(self))[index]
        first, last = int(self.caption_offsets[image]), int(self.caption_offsets[image + 1])
        name, path = self.ids[image].as_py(), self.paths[image].as_py()
        row, num_bytes, group = (int(numbers[image]) for numbers in (self.embedded_row_I, self.num_bytes_I, self.group_I))
        return ManifestImage(
            id=name,
            split=self.splits[int(self.split_I[image])],
            path=Path(self.root + path) if path and row < 0 else None,
            embedded=EmbeddedImage(row, name, num_bytes) if row >= 0 else None,
            num_bytes=num_bytes,
            group=self.groups[group] if group >= 0 else None,
            captions=self.captions[first:last].to_pylist(),
            where=self.places.text(image),
            columns={name: values[first:last] for name, values in self.columns.items()},
            texts={name: lists[first:last] for name, lists in self.texts.items()},
        )

    @property
    def split_counts(self) -> dict[str | None, int]:
        """Number of images of each split; null first, the others sorted."""
        counts = np.bincount(self.split_I, minlength=len(self.splits)).tolist()
        named = sorted(zip(self.splits, counts, strict=True), key=lambda item: (item[0] is not None, item[0] or ""))
        return {split: count for split, count in named if count}

    def split_names(self) -> list[str | None]:
        """The split of each image."""
        return [self.splits[place] for place in self.split_I.tolist()]

    def with_splits(self, splits: Iterable[str | None]) -> "ImageTable":
        """The same images with other splits, one for each."""
        codes: dict[str | None, int] = {}
        split_I = _int64(codes.setdefault(split, len(codes)) for split in splits)
        return replace(self, splits=list(codes), split_I=split_I)

    def indices_of(self, split: str | None) -> np.ndarray:
        """Indices of the images of one split, int64, ascending."""
        return np.flatnonzero(self.split_I == self.splits.index(split)) if split in self.splits else np.empty(0, dtype=np.int64)

    def of_split(self, split: str | None) -> "ImageTable":
        """The images of one split."""
        return self.take(self.indices_of(split))

    def take(self, images: np.ndarray) -> "ImageTable":
        """The images at some indices, int64, in this order."""
        if np.array_equal(images, np.arange(len(self))):
            return self
        counts = np.diff(self.caption_offsets)[images]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        captions = np.arange(offsets[-1]) + np.repeat(self.caption_offsets[images] - offsets[:-1], counts)
        ids = self.ids.take(pa.array(images))
        taken = replace(
            self,
            ids=ids,
            paths=ids if self.paths is self.ids else self.paths.take(pa.array(images)),
            embedded_row_I=self.embedded_row_I[images],
            num_bytes_I=self.num_bytes_I[images],
            split_I=self.split_I[images],
            group_I=self.group_I[images],
            places=self.places.take(images),
            caption_offsets=offsets,
            captions=self.captions.take(pa.array(captions)),
            caption_hash_C=self.caption_hash_C[captions],
            columns={name: [values[caption] for caption in captions] for name, values in self.columns.items()},
            texts={name: [lists[caption] for caption in captions] for name, lists in self.texts.items()},
        )
        return taken.mapped()

    def in_id_order(self) -> "ImageTable":
        """The same images sorted by id; those of one id keep their order. What is large is in mapped files."""
        ordered = self.take(pc.sort_indices(self.ids).to_numpy().astype(np.int64))
        return ordered.mapped() if ordered is self else ordered


def _strings(strings: list[str]) -> pa.Array:
    return pa.array(strings, type=pa.large_string())


def _int64(numbers: Iterable[int]) -> np.ndarray:
    return np.fromiter(numbers, dtype=np.int64)

"""One split, ready for retrieval: its images and captions in id order, and their positive pairs.

Shape letters: I images, C captions, P positive (image, caption) pairs.
"""

import copy
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from eval.dataset.images import ImageError, decode_image, picture_digest
from eval.errors import UserError
from eval.files import SETTLED_SECONDS
from eval.manifest.formats.hub import data_revision
from eval.manifest.image_table import ImageTable, ManifestImage
from eval.manifest.manifest import Manifest
from eval.manifest.memory import mapped
from eval.manifest.rows import RowSource
from eval.manifest.skipped import skipped_record

_STRINGS_AT_ONCE = 16384


class StringColumn(Sequence[str]):
    """Many strings in one Arrow buffer.

    A Python list of a million strings is copied page by page into every data-loading process, since counting a reference
    writes to it; Arrow's buffer is shared.
    """

    def __init__(self, strings: Iterable[str] | pa.Array) -> None:
        self.array: pa.LargeStringArray = strings if isinstance(strings, pa.Array) else pa.array(strings, type=pa.large_string())

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> str, slice -> list[str]
        if isinstance(index, slice):
            return self.array[index].to_pylist()
        return self.array[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for strings in self.blocks():
            yield from strings

    def __contains__(self, string: object) -> bool:
        return isinstance(string, str) and bool(pc.index(self.array, pa.scalar(string, pa.large_string())).as_py() >= 0)

    def blocks(self) -> Iterator[list[str]]:
        """The strings, some thousands at a time."""
        for start in range(0, len(self.array), _STRINGS_AT_ONCE):
            yield self.array[start : start + _STRINGS_AT_ONCE].to_pylist()

    def take(self, indices: np.ndarray) -> "StringColumn":
        """Those at some indices, in this order."""
        return StringColumn(self.array.take(pa.array(indices)))


@dataclass(frozen=True)
class PositivePairs:
    """The relevant gallery items of every query, CSR: those of query q are indices_P[offsets[q]:offsets[q + 1]], ascending."""

    offsets: np.ndarray
    indices_P: np.ndarray

    def of(self, query: int) -> np.ndarray:
        """Gallery indices that are positive for a query, int64, ascending."""
        return self.indices_P[self.offsets[query] : self.offsets[query + 1]]

    @property
    def query_P(self) -> np.ndarray:
        """The query of each pair, int64."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    @property
    def counts(self) -> np.ndarray:
        """Number of positives of each query."""
        return np.diff(self.offsets)


class StoredImages:
    """Images in the order given, each in a file or embedded in a row of the manifest; decoded when they are loaded."""

    def __init__(
        self, ids: StringColumn, paths: StringColumn, embedded_row_I: np.ndarray, rows: RowSource | None, *, source: str, root: str = ""
    ) -> None:
        """Store where images are.

        Args:
            paths: of each image, after `root`; empty where it is no file.
            embedded_row_I: the row with its bytes; -1 where it is in none.
            rows: those with the bytes of embedded images.
        """
        self.source, self._rows, self._root = source, rows, root
        self.image_ids = ids
        self._paths, self._embedded_row_I = paths, embedded_row_I

    @property
    def num_images(self) -> int:
        """Number of images, I."""
        return len(self.image_ids)

    def load_image(self, image: int, /, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Decode one image to RGB; at_least as of `decode_image`.

        Raises:
            eval.dataset.images.ImageError: it cannot be decoded; the message names it.
        """
        if not self._is_embedded(image):
            return decode_image(self.path(image), at_least=at_least)
        content = self.embedded_bytes(image)
        try:
            return decode_image(content, named=self.image_place(image), at_least=at_least)
        except ImageError as error:
            raise ImageError(f"{self.image_place(image)}: {error}") from None

    def image_digest(self, image: int, /) -> bytes:
        """SHA-256 of one image as it is given: of its file's bytes, or of the embedded ones.

        Raises:
            eval.dataset.images.ImageError: its file cannot be read.
        """
        return picture_digest(self.embedded_bytes(image) if self._is_embedded(image) else self.path(image))

    def picture_key(self, image: int, /) -> bytes | None:
        """What a cache of pixels knows one image by, 16 bytes: its path, size and times of the last changes, or its embedded bytes. None:
        its file is not there, or changed a moment ago, when a further change could not be seen.

        Raises:
            eval.dataset.images.ImageError: the file that embeds it cannot be read any more.
        """
        if self._is_embedded(image):
            content = self.embedded_bytes(image)
        else:
            size, changed_ns, renamed_ns = self.file_times(image)
            if size < 0 or time.time() - changed_ns / 1e9 < SETTLED_SECONDS:
                return None
            content = os.fsencode(f"{os.path.abspath(self.path(image))} {size} {changed_ns} {renamed_ns}")
        return hashlib.blake2b(content, digest_size=16).digest()

    def picture_stamp(self, image: int, /) -> tuple[int, int]:
        """(size in bytes, time of the last change, ns) of one image's file; where it is embedded, 0 and a number for the files that embed
        it (0: not known). (-1, 0): there is no file any more."""
        if self._is_embedded(image):
            assert self._rows is not None
            return self._rows.stamp
        return self.file_times(image)[:2]

    def file_times(self, image: int, /) -> tuple[int, int, int]:
        """(size in bytes, time of the last change of its content, ns, and of that or its name or times, ns) of the file of an image that
        is not embedded. (-1, 0, 0): there is no file any more."""
        try:
            found = os.stat(self.path(image))
        except OSError:
            return -1, 0, 0
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def embedded_bytes(self, image: int, /) -> bytes:
        """The bytes of an embedded image.

        Raises:
            eval.dataset.images.ImageError: the file that embeds it cannot be read any more.
        """
        assert self._rows is not None
        try:
            return self._rows.image_bytes(int(self._embedded_row_I[image]))
        except OSError as error:
            raise ImageError(f"{self.image_place(image)}: {error}") from error

    def _is_embedded(self, image: int) -> bool:
        return self._rows is not None and int(self._embedded_row_I[image]) >= 0

    def path(self, image: int) -> str:
        """Path of an image; empty where it is embedded."""
        path = self._paths[image]
        return self._root + path if path else ""

    def image_place(self, image: int) -> str:
        """Where an image is, for messages: its path, or its id where it is embedded."""
        return self.path(image) or f"{self.source} image {self.image_ids[image]!r} (embedded)"


class RetrievalSet(StoredImages):
    """The images and captions of one split, both in id order, as columns.

    Images are sorted by id; captions by image, then by their place in it, so index order is id order. An (image, caption) pair is
    positive if and only if the normalised caption equals one of any image of the image's group (docs/captions.md).

    Attributes:
        keeps_marks: punctuation between two digits counts in normalised captions (eval/dataset/caption_rule.py).
        every: the set whose repeated captions this one leaves out (eval/dataset/different_texts.py); None: this one has all its captions.
        kept_captions: int64, the captions of `every` that are left; None without it.
    """

    def __init__(self, images: Sequence[ManifestImage], manifest: Manifest | None, *, source: str, split: str | None) -> None:
        """images: an ImageTable in id order, or some images in any order."""
        table = images if isinstance(images, ImageTable) else ImageTable.of(images)
        rows = manifest.rows if manifest is not None else None
        super().__init__(StringColumn(table.ids), StringColumn(table.paths), table.embedded_row_I, rows, source=source, root=table.root)
        self.split = split
        self.skipped = [] if manifest is None else [row for row in manifest.skipped if split is None or row.split == split]
        self.captions = StringColumn(table.captions)
        self.columns, self.texts = table.columns, table.texts
        self.caption_offsets = table.caption_offsets  # captions of image i: offsets[i]:offsets[i + 1]
        counts_I = np.diff(table.caption_offsets)
        has_one_each = bool((counts_I == 1).all())  # the image of caption c is then c, and the offsets serve twice
        self.caption_image_C = table.caption_offsets[:-1] if has_one_each else mapped(np.repeat(np.arange(len(table)), counts_I))
        self._caption_place_C: np.ndarray | None = None
        self.keeps_marks = False
        self.every: RetrievalSet | None = None
        self.kept_captions: np.ndarray | None = None
        self.caption_hash_C = table.caption_hash_C
        self.group_I = self.caption_image_C if has_one_each and not table.groups else mapped(_numbered_groups(table.group_I))
        self._groups, self._named_group_I = table.groups, table.group_I
        self.num_bytes_I = table.num_bytes_I
        self.truth: dict[str, Any] = {"protocol": "all"}
        self._pairs: tuple[np.ndarray, np.ndarray] | None = None
        self.true_hashes = GroupHashes(self.group_I[self.caption_image_C], self.caption_hash_C)

    @property
    def num_captions(self) -> int:
        """Number of captions, C."""
        return len(self.captions)

    @property
    def caption_place_C(self) -> np.ndarray:
        """The place of each caption among those of its image, from 0, int64."""
        if self._caption_place_C is not None:
            return self._caption_place_C
        return np.arange(len(self.caption_image_C)) - self.caption_offsets[self.caption_image_C]

    @property
    def caption_ids(self) -> Sequence[str]:
        """`IMAGE_ID#K` of every caption, in order."""
        return _CaptionIds(self)

    def caption_id(self, caption: int) -> str:
        """`IMAGE_ID#K` of one caption."""
        image = self.caption_image_C[caption]
        place = caption - self.caption_offsets[image] if self._caption_place_C is None else self._caption_place_C[caption]
        return f"{self.image_ids[image]}#{place}"

    def group_names(self) -> list[str | None]:
        """Group of each image as the manifest names it; empty when no image has one."""
        names = [*self._groups, None]
        return [names[group] for group in self._named_group_I] if (self._named_group_I >= 0).any() else []

    def is_positive(self, images: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Whether each (image, caption) pair is positive, by the caption's hash; arguments broadcast. Returns bool."""
        return self.true_hashes.contains(self.group_I[images], hashes)

    def positives(self, direction: str) -> PositivePairs:
        """All positive pairs, by query: captions of each image, or images of each caption."""
        images_P, captions_P = self.positive_pairs()
        sides = {"image_to_text": (images_P, captions_P, self.num_images), "text_to_image": (captions_P, images_P, self.num_captions)}
        queries_P, items_P, num_queries = sides[direction]
        order = np.lexsort((items_P, queries_P))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(queries_P, minlength=num_queries))]).astype(np.int64)
        return PositivePairs(offsets, items_P[order])

    def positive_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(image, caption) of every positive pair, each once: int64 images_P and captions_P."""
        return self._pairs if self._pairs is not None else matching_pairs(self.group_I, self.caption_hash_C, self.true_hashes)

    def with_positive_pairs(self, images_P: np.ndarray, captions_P: np.ndarray, truth: dict[str, Any]) -> "RetrievalSet":
        """The split with another ground truth for evaluation (eval/dataset/truth.py); `is_positive`, which training uses, is unchanged."""
        other = copy.copy(self)
        other._pairs, other.truth = (images_P, captions_P), truth
        return other

    def record(self) -> dict[str, Any]:
        """How a report names the split: of a data set of the hub with its commit; where rows were left out as asked, with their number."""
        revision = data_revision(self.source)
        return {
            "split": self.split,
            "num_images": self.num_images,
            "num_captions": self.num_captions,
            "sha256": self.sha256(),
            "truth": self.truth,
        } | ({"revision": revision} if revision is not None else {}) | ({"skipped": skipped_record(self.skipped)} if self.skipped else {})

    def sha256(self) -> str:
        """Hash of the split: ids, groups, captions (those that are left out too), and the size in bytes of every image."""
        if self.every is not None:
            return self.every.sha256()
        digest = hashlib.sha256()
        for column in (self.image_ids, self.captions):
            for texts in column.blocks():
                digest.update("\0".join([*texts, ""]).encode())
        for array in (self.caption_offsets, self.group_I, self.num_bytes_I):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        return digest.hexdigest()


class _CaptionIds(Sequence[str]):
    """`IMAGE_ID#K` of every caption of a split, made as it is looked up."""

    def __init__(self, dataset: RetrievalSet) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return self._dataset.num_captions

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> str, slice -> list[str]
        captions = range(len(self))[index]
        return self._dataset.caption_id(captions) if isinstance(captions, int) else [self._dataset.caption_id(one) for one in captions]

    def __iter__(self) -> Iterator[str]:
        offsets, places_C = self._dataset.caption_offsets, self._dataset.caption_place_C
        for image, name in enumerate(self._dataset.image_ids):
            yield from (f"{name}#{place}" for place in places_C[offsets[image] : offsets[image + 1]])


def _numbered_groups(named_I: np.ndarray) -> np.ndarray:
    """Groups numbered from 0 by first appearance, int64; an image without one (-1) is a group of its own."""
    own_I = named_I.max(initial=-1) + 1 + np.arange(len(named_I))
    _, first, place_I = np.unique(np.where(named_I < 0, own_I, named_I), return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[place_I]


def _join(keys_N: np.ndarray, sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first place, count) of each key in a sorted array."""
    first_N = np.searchsorted(sorted_keys, keys_N, side="left")
    return first_N, np.searchsorted(sorted_keys, keys_N, side="right") - first_N


def matching_pairs(group_I: np.ndarray, key_C: np.ndarray, true: "GroupHashes") -> tuple[np.ndarray, np.ndarray]:
    """(image, caption) of every pair whose (group, key) is positive, each once."""
    groups_N, keys_N = true.distinct()
    by_group, by_key = np.argsort(group_I, kind="stable"), np.argsort(key_C, kind="stable")
    images_NM, counts_images_N = _join(groups_N, group_I[by_group])
    captions_NM, counts_captions_N = _join(keys_N, key_C[by_key])
    pairs_N = counts_images_N * counts_captions_N
    entry_P = np.repeat(np.arange(len(groups_N)), pairs_N)
    within_P = np.arange(len(entry_P)) - np.repeat(np.cumsum(pairs_N) - pairs_N, pairs_N)
    images_P = by_group[images_NM[entry_P] + within_P // counts_captions_N[entry_P]]
    captions_P = by_key[captions_NM[entry_P] + within_P % counts_captions_N[entry_P]]
    return images_P.astype(np.int64), captions_P.astype(np.int64)


class GroupHashes:
    """The set of positive (group, caption hash) pairs, sorted, so that many pairs are looked up in one binary search."""

    def __init__(self, groups: np.ndarray, hashes: np.ndarray) -> None:
        self._known_hashes, place_N = np.unique(hashes, return_inverse=True)
        # with return_counts numpy sorts; without, it hashes, which takes more time a value the more values there are
        codes, _ = np.unique(groups * len(self._known_hashes) + place_N, return_counts=True)
        self._known_hashes, self._codes = mapped(self._known_hashes), mapped(codes)

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """Group and hash of every positive pair, each once."""
        if not len(self._codes):
            return self._codes, self._codes
        return self._codes // len(self._known_hashes), self._known_hashes[self._codes % len(self._known_hashes)]

    def within(self, groups: np.ndarray, hashes: np.ndarray | None) -> "GroupHashes":
        """The positive pairs of some groups and, if given, of some hashes."""
        width, groups = len(self._known_hashes), np.unique(groups)
        first, last = np.searchsorted(self._codes, groups * width), np.searchsorted(self._codes, (groups + 1) * width)
        counts = last - first
        place = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        other = copy.copy(self)
        other._codes = self._codes[place]
        if hashes is not None and width:
            other._codes = other._codes[np.isin(self._known_hashes[other._codes % width], hashes)]
        return other

    def contains(self, groups: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Whether each (group, hash) is positive; arguments broadcast."""
        groups, hashes = np.broadcast_arrays(groups, hashes)
        if not len(self._codes):
            return np.zeros(groups.shape, dtype=bool)
        place = np.minimum(np.searchsorted(self._known_hashes, hashes), len(self._known_hashes) - 1)
        code = groups * len(self._known_hashes) + place
        found = np.minimum(np.searchsorted(self._codes, code), len(self._codes) - 1)
        return (self._known_hashes[place] == hashes) & (self._codes[found] == code)


def load_split(manifest: Manifest, split: str | None) -> RetrievalSet:
    """The images and captions of one split; `None` takes every row of a manifest without splits.

    Raises:
        UserError: there is no such split, or rows of several splits would be mixed.
    """
    if split is None and manifest.splits != [None]:
        raise UserError(
            f"{manifest.source} has the splits {[name for name in manifest.splits if name is not None]}: "
            "say which (--split NAME; `split: NAME` in a job)"
        )
    chosen = manifest.images.of_split(split)
    if not len(chosen):
        raise UserError(f"{manifest.source}: no row has split {split!r}; splits found: {manifest.splits}")
    return RetrievalSet(chosen, manifest, source=manifest.source, split=split)

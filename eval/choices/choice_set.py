"""A choice set: pictures with a true caption among false ones, or two pictures with two captions to be told apart.

The manifest is .jsonl or .parquet, one example a row, of two kinds that may be in one file:

    {"image": "a.jpg", "caption": "a dog on a sofa", "false_captions": ["a sofa on a dog"], "category": "order"}
    {"images": ["a.jpg", "b.jpg"], "captions": ["a dog on a sofa", "a sofa on a dog"]}

Caption i of a row with two pictures belongs to picture i. Paths are relative to the image root; a parquet may embed {bytes, path} instead.
Optional: `id`, `category`, and `box`, the part of `image` to look at (left, top, width, height in pixels).
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from eval.captions import visible
from eval.dataset.images import MAX_PIXELS, ImageError, decode_image, picture_digest, picture_size
from eval.errors import UserError
from eval.files import TABLE_BYTES, require_plain
from eval.manifest.formats.encoding import records_of
from eval.manifest.formats.text import read_jsonl
from eval.manifest.manifest import Fault, ManifestError, caption_fault, cell_text
from eval.manifest.paths import ImagePaths, PathFault

COLUMNS = frozenset({"id", "category", "image", "box", "caption", "false_captions", "images", "captions"})
ChoiceKind = Literal["choice", "pair"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ChoiceImage:
    """An image of a choice set, or a part of one.

    Attributes:
        key: names the whole picture; two parts of one picture share it.
        source: its file, or its encoded bytes.
        num_bytes: size of the whole picture, encoded.
        box: left, top, width and height of the part, pixels; None: all of it.
    """

    key: str
    source: Path | bytes
    num_bytes: int
    box: Box | None = None

    @property
    def id(self) -> str:
        """The key, and the box where there is one."""
        return self.key if self.box is None else f"{self.key}[{','.join(f'{side:g}' for side in self.box)}]"

    def load(self) -> Image.Image:
        """Decode to RGB and cut the box out; what of it lies outside the picture is black, as in ARO's own evaluation.

        Raises:
            ImageError: it cannot be decoded, or the box misses it.
        """
        try:
            image = decode_image(self.source, named=self.key if isinstance(self.source, bytes) else None)
        except ImageError as error:
            raise ImageError(f"{self.id}: {error}") from None
        if self.box is None:
            return image
        if fault := self.box_fault(image.size):
            raise ImageError(f"{self.id}: {fault}")
        left, top, width, height = self.box
        return image.crop((round(left), round(top), max(round(left) + 1, round(left + width)), max(round(top) + 1, round(top + height))))

    def box_fault(self, size: tuple[int, int]) -> str:
        """What is wrong with the box on a picture of this width and height, pixels; empty: nothing."""
        if self.box is None:
            return ""
        left, top, width, height = self.box
        if left < size[0] and top < size[1] and left + width > 0 and top + height > 0:
            return ""
        return f"the box lies outside the {size[0]} x {size[1]} pixels of the picture"

    def digest(self) -> bytes:
        """SHA-256 of the picture as it is given, and of the box where there is one.

        Raises:
            ImageError: its file cannot be read.
        """
        whole = picture_digest(self.source)
        return whole if self.box is None else hashlib.sha256(whole + repr(self.box).encode()).digest()


@dataclass(frozen=True)
class ChoiceExample:
    """One row.

    Attributes:
        images: indices of its pictures: one, or two.
        captions: indices of its captions: the true one and then the false ones, or the one of each picture.
    """

    id: str
    kind: ChoiceKind
    category: str | None
    images: tuple[int, ...]
    captions: tuple[int, ...]


@dataclass(frozen=True)
class ChoiceSet:
    """The examples of a manifest (`source`), each distinct picture and text once."""

    source: str
    examples: Sequence[ChoiceExample]
    images: Sequence[ChoiceImage]
    captions: Sequence[str]

    @property
    def num_images(self) -> int:
        """Number of distinct pictures."""
        return len(self.images)

    @property
    def image_ids(self) -> list[str]:
        """Name of each picture."""
        return [image.id for image in self.images]

    @property
    def caption_ids(self) -> Sequence[str]:
        """Name of each caption: its text."""
        return self.captions

    def load_image(self, image: int) -> Image.Image:
        """Decode one picture to RGB.

        Raises:
            eval.dataset.images.ImageError: it cannot be decoded; the message names it.
        """
        return self.images[image].load()

    def image_digest(self, image: int) -> bytes:
        """SHA-256 of what one picture shows.

        Raises:
            eval.dataset.images.ImageError: its file cannot be read.
        """
        return self.images[image].digest()

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The (image, caption) pairs to score, int64, example after example: every picture of it with every caption, picture by picture."""
        pairs_N2 = [(image, caption) for example in self.examples for image in example.images for caption in example.captions]
        images_N, captions_N = np.array(pairs_N2, dtype=np.int64).reshape(-1, 2).T
        return images_N, captions_N

    def scores_by_example(self, scores_N: np.ndarray) -> list[np.ndarray]:
        """The scores of `pairs()`, in their order, as one array of shape (images, captions) per example."""
        shapes = [(len(example.images), len(example.captions)) for example in self.examples]
        ends = np.cumsum([images * captions for images, captions in shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(scores_N, ends[:-1]), shapes, strict=True)]

    def sha256(self) -> str:
        """Hash of ids, kinds, categories, captions in order, and the name, box and size of every picture."""
        digest = hashlib.sha256()
        for example in self.examples:
            images = [(self.images[image].id, self.images[image].num_bytes) for image in example.images]
            captions = [self.captions[caption] for caption in example.captions]
            digest.update(f"{(example.id, example.kind, example.category, images, captions)!r}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def read_choices(source: str | os.PathLike[str], *, image_root: str | os.PathLike[str] | None = None) -> ChoiceSet:
    """Read a choice set whole and check every row; it is held in memory, embedded pictures included.

    Raises:
        ManifestError: with every fault found.
        UserError: the source does not exist or is of no known kind.
    """
    path = Path(source)
    faults: list[Fault] = []
    reader = _Reader(ImagePaths(Path(image_root) if image_root is not None else path.parent, "choices_root"), faults)
    for where, record in _records(path, faults):
        reader.add(where, record)
    reader.check_boxes()
    if not reader.examples and not faults:
        faults.append(Fault(str(source), "empty", "the choice set has no rows"))
    if faults:
        raise ManifestError(str(source), faults)
    return ChoiceSet(str(source), reader.examples, list(reader.pictures), list(reader.captions))


def jsonl_rows(path: Path, faults: list[Fault]) -> list[tuple[str, dict[str, Any]]]:
    """(file and line, record) of every row; those that cannot be read go to `faults`."""
    unreadable: list[tuple[str, str]] = []
    _, records = read_jsonl(path, unreadable)
    faults += [Fault(where, "unreadable row", what) for where, what in unreadable]
    return [(f"{path}:{line}", record) for line, record in records]


def _records(path: Path, faults: list[Fault]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line or row, columns) of every row."""
    try:
        if path.suffix == ".parquet":
            require_plain(path, TABLE_BYTES)
            names = set(pq.read_schema(path).names) & COLUMNS
            for number, record in enumerate(records_of(pq.read_table(path, columns=sorted(names))), 1):
                yield f"{path} row {number}", record
        elif path.suffix == ".jsonl":
            yield from jsonl_rows(path, faults)
        else:
            raise UserError(f"{path}: a choice set is .jsonl or .parquet; python -m eval.convert_choices makes one of other layouts")
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as a choice set ({error})") from error


def _holds_pixels(left: float, top: float, width: float, height: float) -> bool:
    """Whether a box has a size that a picture can have, and does not end before the picture begins."""
    return width > 0 and height > 0 and width * height <= MAX_PIXELS and max(left, top) < 2**31 and left + width > 0 and top + height > 0


_FORMS = "a row has `image`, `caption` and `false_captions`, or two `images` and two `captions`"


class _Reader:
    """Checks rows one by one; what is wrong goes to `faults`."""

    def __init__(self, paths: ImagePaths, faults: list[Fault]) -> None:
        self.paths, self.faults = paths, faults
        self.examples: list[ChoiceExample] = []
        self.pictures: dict[ChoiceImage, int] = {}
        self.captions: dict[str, int] = {}
        self._place_of_id: dict[str, str] = {}

    def add(self, where: str, record: Mapping[str, Any]) -> None:
        """Check one row, and add it if nothing is wrong."""
        num_faults = len(self.faults)
        given = {name for name in COLUMNS if record.get(name) is not None}
        kind: ChoiceKind = "choice" if "false_captions" in given else "pair"
        needed = {"image", "caption", "false_captions"} if kind == "choice" else {"images", "captions"}
        if given - {"id", "category", "box"} != needed:
            self._fault(where, "no known form", f"{_FORMS}; found {sorted(given) or 'none of them'}")
            return
        images = [record["image"]] if kind == "choice" else self._list(where, record, "images")
        captions = self._list(where, record, "false_captions" if kind == "choice" else "captions")
        captions = [record["caption"], *captions] if kind == "choice" else captions
        self.faults += [fault for caption in captions if (fault := caption_fault(where, caption))]
        box = self._box(where, record["box"], kind) if "box" in given else None
        pictures = [picture for image in images if (picture := self._picture(where, image, box))]
        id = cell_text(where, "id", record.get("id"), self.faults) or f"row-{len(self._place_of_id) + 1:06d}"
        category = cell_text(where, "category", record.get("category"), self.faults)
        if (earlier := self._place_of_id.setdefault(id, where)) != where:
            self._fault(where, "id twice", f"id {id!r} is at {earlier} too")
        if len(self.faults) == num_faults:
            self._check_different(where, kind, pictures, captions)
        if len(self.faults) == num_faults:
            numbers = tuple(self.pictures.setdefault(picture, len(self.pictures)) for picture in pictures)
            words = tuple(self.captions.setdefault(caption, len(self.captions)) for caption in captions)
            self.examples.append(ChoiceExample(id, kind, category, numbers, words))

    def _fault(self, where: str, kind: str, what: str) -> None:
        self.faults.append(Fault(where, kind, what))

    def _list(self, where: str, record: Mapping[str, Any], name: str) -> list[Any]:
        """A list of the right length, or an empty one after a fault."""
        value, wanted = record[name], "at least one" if name == "false_captions" else "two"
        if isinstance(value, list) and (len(value) == 2 or (name == "false_captions" and value)):
            return value
        found = f"{len(value)}" if isinstance(value, list) else f"{type(value).__name__}: {value!r:.80}"
        self._fault(where, f"wrong {name}", f"{name}: expected a list of {wanted}, found {found}")
        return []

    def _box(self, where: str, value: Any, kind: ChoiceKind) -> Box | None:
        numbers = value if isinstance(value, list) else []
        good = all(isinstance(side, (int, float)) and not isinstance(side, bool) and math.isfinite(side) for side in numbers)
        if kind == "choice" and len(numbers) == 4 and good and _holds_pixels(*numbers):
            return tuple(float(side) for side in numbers)  # type: ignore[return-value]  # of four
        expected = (
            f"[left, top, width, height] in pixels, next to `image`, width and height above 0 and at most {MAX_PIXELS:,} pixels in it"
        )
        self._fault(where, "wrong box", f"box: expected {expected}; found {value!r:.80}")
        return None

    def _picture(self, where: str, value: Any, box: Box | None) -> ChoiceImage | None:
        """The picture of a cell, or None after a fault."""
        path = value.get("path") if isinstance(value, dict) else value
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes) and data:
            digest = hashlib.sha256(data).hexdigest()[:16]  # two rows may give one name to different pictures
            return ChoiceImage(f"{path}#{digest}" if isinstance(path, str) and path else f"#{digest}", data, len(data), box)
        try:
            return ChoiceImage(*self.paths.find(path), box)
        except PathFault as fault:
            self._fault(where, fault.kind, str(fault))
            return None

    def check_boxes(self) -> None:
        """Refuse boxes that miss their picture, by its header; what has none that can be read is left to the decoder."""
        sizes: dict[str, tuple[int, int] | None] = {}
        for picture in self.pictures:
            if picture.box is not None:
                if picture.key not in sizes:
                    sizes[picture.key] = picture_size(picture.source)
                size = sizes[picture.key]
                if size is not None and (fault := picture.box_fault(size)):
                    self._fault(
                        str(picture.source) if isinstance(picture.source, Path) else picture.key, "wrong box", f"{picture.id}: {fault}"
                    )

    def _check_different(self, where: str, kind: ChoiceKind, pictures: list[ChoiceImage], captions: list[str]) -> None:
        """Refuse an example that has no one correct choice."""
        if len(set(pictures)) < len(pictures):
            self._fault(where, "one picture twice", f"both images are {pictures[0].id!r}")
        seen = [visible(caption) for caption in captions]
        if len(set(seen)) < len(seen) if kind == "pair" else seen[0] in seen[1:]:
            what = "both captions are" if kind == "pair" else "a false caption is the true one,"
            self._fault(where, "one caption twice", f"{what} {captions[0]!r:.200}")

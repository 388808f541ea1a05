"""The chosen queries as people see them: picture or caption, its relevant item with both ranks, the first answers before and after."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.encoder import ImageSource
from eval.metrics.evaluate import Figures
from eval.search.ranking import DIRECTIONS

NUM_SHOWN = 5
THUMBNAIL_PIXELS = 96
QUERY_PIXELS = 176
PICTURE_BYTES = 1_200_000
"""Of all pictures of a report together, at most: they become smaller where they would be more."""
_SCALES = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2)
_MOST_CHARACTERS = 300
_ALT_CHARACTERS = 120


@dataclass(frozen=True)
class Item:
    """An image or a caption, as a query or an answer.

    Attributes:
        text: of a caption; of an image, its first caption.
        picture: number of its picture in the gallery, from 1; 0: a caption, or an image that does not decode.
        other_rank: its place in the other list, from 1; None: not in what is known of it.
    """

    id: str
    is_image: bool
    text: str = ""
    picture: int = 0
    score: float | None = None
    is_right: bool = False
    was_reranked: bool = False
    other_rank: int | None = None


@dataclass(frozen=True)
class ShownQuery:
    """A query with the step it is shown for (a row as of report.json's `failures`).

    Attributes:
        relevant: its best relevant item, of the list after if it is there, else of the one before, else any.
        is_best: `relevant` is known to be the one whose ranks the row tells.
        num_relevant: how many it has.
    """

    failure: dict[str, Any]
    query: Item
    relevant: Item
    is_best: bool
    num_relevant: int
    before: list[Item]
    after: list[Item]


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data: URI, with its width and height in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Queries, and each picture they need once, in the order of their numbers."""

    queries: Sequence[ShownQuery] = ()
    pictures: Sequence[Picture] = ()


def gallery(dataset: RetrievalSet, figures: Figures) -> Gallery:
    """The queries of figures.shown, in their order."""
    items = _Items(dataset)
    rows = zip(figures.shown, _rows(figures, "against"), _rows(figures, "stage"), strict=True)
    return Gallery([items.shown(*each) for each in rows], items.pictures.fitted())


def _rows(figures: Figures, side: str) -> list[dict[str, Any]]:
    """Of each shown query the row of queries.parquet on one side."""
    shown, table = figures.shown, figures.queries
    wanted = pa.array([row["query_id"] for row in shown], type=pa.string())
    few = table.filter(pc.is_in(table["query_id"], value_set=wanted)).select(["stage", "direction", "query_id", "top_ids", "top_scores"])
    found = {(row["stage"], row["direction"], row["query_id"]): row for row in few.to_pylist()}
    return [found[row[side], row["direction"], row["query_id"]] for row in shown]


class _Items:
    """Makes items."""

    def __init__(self, dataset: RetrievalSet) -> None:
        self._dataset, self._captions, self.pictures = dataset, dataset.captions, _Pictures(dataset)
        self._ids = {True: dataset.image_ids, False: dataset.caption_ids}
        self._number = {kind: {name: number for number, name in enumerate(ids)} for kind, ids in self._ids.items()}
        self._positives = {direction: dataset.positives(direction) for direction in DIRECTIONS}

    def shown(self, failure: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> ShownQuery:
        """One query, from its row and those of queries.parquet on both sides."""
        asks_image = failure["direction"] == "image_to_text"
        query = self._number[asks_image][failure["query_id"]]
        right = [self._ids[not asks_image][int(number)] for number in self._positives[failure["direction"]].of(query)]
        best = [(after, failure["rank_after"]), (before, failure["rank_before"])]
        known = [row["top_ids"][rank - 1] for row, rank in best if rank <= len(row["top_ids"]) and row["top_ids"][rank - 1] in set(right)]
        return ShownQuery(
            failure,
            self.item(asks_image, failure["query_id"], QUERY_PIXELS),
            self.item(not asks_image, (known or right)[0]),
            bool(known) or len(right) == 1,
            len(right),
            self._answers(before, after, set(right), 0),
            self._answers(after, before, set(right), failure["top_k"] or 0),
        )

    def _answers(self, row: dict[str, Any], other: dict[str, Any], right: set[str], top_k: int) -> list[Item]:
        """The first answers of a row of queries.parquet, of which `top_k` were scored by a reranker."""
        places = {name: place for place, name in enumerate(other["top_ids"], 1)}
        shown = zip(row["top_ids"][:NUM_SHOWN], row["top_scores"], strict=False)
        return [
            replace(
                self.item(row["direction"] == "text_to_image", name),
                score=score,
                is_right=name in right,
                was_reranked=place < top_k,
                other_rank=places.get(name),
            )
            for place, (name, score) in enumerate(shown)
        ]

    def item(self, is_image: bool, name: str, pixels: int = THUMBNAIL_PIXELS) -> Item:
        """An image or a caption by its id."""
        number = self._number[is_image][name]
        if not is_image:
            return Item(name, False, shortened(self._captions[number]))
        first = self._positives["image_to_text"].of(number)
        said = self._captions[int(first[0])] if len(first) else ""
        return Item(name, True, shortened(said, _ALT_CHARACTERS), self.pictures.number(number, pixels))


class _Pictures:
    """Pictures that were asked for, each decoded once."""

    def __init__(self, images: ImageSource) -> None:
        self._images, self._number = images, dict[int, int]()
        self._small: list[Image.Image] = []
        self._pixels: list[int] = []

    def number(self, image: int, pixels: int) -> int:
        """The number of an image's picture, from 1; 0: it does not decode, for which no page of what is measured may fail."""
        if image not in self._number:
            try:
                small = self._images.load_image(image).convert("RGB")
            except ImageError:
                self._number[image] = 0
                return 0
            small.thumbnail((QUERY_PIXELS, QUERY_PIXELS))
            self._small.append(small)
            self._pixels.append(0)
            self._number[image] = len(self._small)
        if number := self._number[image]:
            self._pixels[number - 1] = max(self._pixels[number - 1], pixels)
        return self._number[image]

    def fitted(self) -> list[Picture]:
        """All of them, as large as was asked, or smaller so that together they have at most PICTURE_BYTES."""
        made: list[Picture] = []
        for scale in _SCALES:
            made = [encoded(small, round(scale * pixels)) for small, pixels in zip(self._small, self._pixels, strict=True)]
            if sum(len(picture.uri) for picture in made) <= PICTURE_BYTES:
                break
        return made


@dataclass
class Thumbnails:
    """Thumbnails of images, each made once."""

    images: ImageSource
    made: dict[tuple[int, int], str] = field(default_factory=dict)

    def of(self, image: int, pixels: int = THUMBNAIL_PIXELS) -> str:
        """A `thumbnail`, or nothing where the image does not decode: a page of what is measured already must not fail for a picture."""
        if (image, pixels) not in self.made:
            try:
                self.made[image, pixels] = thumbnail(self.images.load_image(image), pixels)
            except ImageError:
                self.made[image, pixels] = ""
        return self.made[image, pixels]


def shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
    """The first 300 characters of a caption, or so many."""
    return text if len(text) <= most else text[:most] + " …"


def thumbnail(image: Image.Image, pixels: int = THUMBNAIL_PIXELS) -> str:
    """A data: URI of a JPEG whose longer side is at most so many pixels, encoded anew: nothing of the file itself gets into a page."""
    return encoded(image, pixels).uri


def encoded(image: Image.Image, pixels: int) -> Picture:
    """The same with its size."""
    small = image.convert("RGB")
    small.info.clear()  # Pillow would write the file's own comment and colour profile again, of any size
    small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return Picture("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), *small.size)

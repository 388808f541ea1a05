"""The chosen queries as people see them: picture or caption, and the first answers before and after, right ones marked."""

import base64
import io
from dataclasses import dataclass, field
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
_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class Item:
    """An image or a caption, as a query or an answer; `picture` is a data: URI, or nothing where there is none or it does not decode."""

    id: str
    text: str = ""
    picture: str = ""
    score: float | None = None
    is_right: bool = False
    was_reranked: bool = False


@dataclass(frozen=True)
class ShownQuery:
    """One row of report.json's `failures` with what it is about."""

    failure: dict[str, Any]
    query: Item
    before: list[Item]
    after: list[Item]


def gallery(dataset: RetrievalSet, figures: Figures) -> list[ShownQuery]:
    """The queries of figures.failures, in their order."""
    items = _Items(dataset)
    rows = zip(figures.failures, _rows(figures, "against"), _rows(figures, "stage"), strict=True)
    return [
        ShownQuery(
            failure,
            items.item(failure["direction"] == "text_to_image", failure["query_id"]),
            items.answers(before, 0),
            items.answers(after, failure["top_k"] or 0),
        )
        for failure, before, after in rows
    ]


def _rows(figures: Figures, side: str) -> list[dict[str, Any]]:
    """Of each failure the row of queries.parquet on one side."""
    failures, table = figures.failures, figures.queries
    wanted = pa.array([failure["query_id"] for failure in failures], type=pa.string())
    few = table.filter(pc.is_in(table["query_id"], value_set=wanted)).select(["stage", "direction", "query_id", "top_ids", "top_scores"])
    found = {(row["stage"], row["direction"], row["query_id"]): row for row in few.to_pylist()}
    return [found[failure[side], failure["direction"], failure["query_id"]] for failure in failures]


class _Items:
    """Makes items."""

    def __init__(self, dataset: RetrievalSet) -> None:
        self._captions, self._thumbnails = dataset.captions, Thumbnails(dataset)
        self._image_number = {name: number for number, name in enumerate(dataset.image_ids)}
        self._caption_number = {name: number for number, name in enumerate(dataset.caption_ids)}
        self._positives = {direction: dataset.positives(direction) for direction in DIRECTIONS}

    def answers(self, row: dict[str, Any], top_k: int) -> list[Item]:
        """The first answers of a row of queries.parquet, of which `top_k` were scored by a reranker."""
        captions_answer = row["direction"] == "image_to_text"
        numbers = self._image_number, self._caption_number
        right = set(self._positives[row["direction"]].of(numbers[not captions_answer][row["query_id"]]).tolist())
        shown = zip(row["top_ids"][:NUM_SHOWN], row["top_scores"], strict=False)
        return [
            self.item(captions_answer, name, score, numbers[captions_answer][name] in right, place < top_k)
            for place, (name, score) in enumerate(shown)
        ]

    def item(self, is_caption: bool, name: str, *marks: Any) -> Item:
        """An image or a caption by its id; `marks` are the score and the rest of an Item."""
        if is_caption:
            return Item(name, shortened(self._captions[self._caption_number[name]]), "", *marks)
        return Item(name, "", self._thumbnails.of(self._image_number[name]), *marks)


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


def shortened(text: str) -> str:
    """The first 300 characters of a caption."""
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …"


def thumbnail(image: Image.Image, pixels: int = THUMBNAIL_PIXELS) -> str:
    """A data: URI of a JPEG whose longer side is at most so many pixels, encoded anew: nothing of the file itself gets into a page."""
    small = image.convert("RGB")
    small.info.clear()  # Pillow would write the file's own comment and colour profile again, of any size
    small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

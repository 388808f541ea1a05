"""Additional captions of images, views of the candidate in text-to-image search: in a file of their own, or in a column of the manifest."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.processes import Processes
from rerank.expansions.base import TextExpansion
from rerank.expansions.further_texts import MOST, ImageCaptions, image_captions
from rerank.expansions.paraphrases import kept_texts
from rerank.expansions.text_file import read_further_texts

NAME = "captions"
NOT_THERE = "rows whose image is not in the split"


@dataclass(frozen=True, kw_only=True)
class CaptionsFile(TextExpansion):
    """A file with columns `image` (the image's id) and `caption` (a text) or `captions` (a list).

    Attributes:
        by_image: id -> its additional captions, in the file's order.
        num_rows: id -> rows that name it.
    """

    name: ClassVar[str] = NAME
    by_image: dict[str, list[str]]
    num_rows: dict[str, int]

    @classmethod
    def read(cls, path: str, *, most: int = MOST) -> "CaptionsFile":
        """Read one whole.

        Raises:
            UserError: it is not there, lacks a column, or with every fault of its rows.
        """
        source = f"captions:{path}"
        by_image: dict[str, list[str]] = {}
        num_rows = Counter[str]()
        for image, texts in read_further_texts(source, path, "image", ("captions", "caption"), _id_fault):
            by_image.setdefault(image, []).extend(texts)
            num_rows[image] += 1
        return cls(source=source, most=most, by_image=by_image, num_rows=num_rows)

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> ImageCaptions:
        """Those of each image of a split.

        Raises:
            UserError: the file names no image of the split.
        """
        ids = list(dataset.image_ids)
        num_not_there = sum(self.num_rows[image] for image in self.num_rows.keys() - set(ids))
        if num_not_there == sum(self.num_rows.values()):
            raise UserError(
                f"{self.source}: none of its {num_not_there} row(s) names an image of {dataset.source} (split {dataset.split!r}); "
                f"expected ids such as {ids[0]!r:.80}, found {next(iter(self.by_image))!r:.80}. Give the file of this split"
            )
        said = (self.by_image.get(image, []) for image in ids)
        noted = {NOT_THERE: num_not_there} if num_not_there else {}
        return image_captions(dataset, said, name=self.name, source=self.source, most=self.most, noted=noted)


def _id_fault(value: Any) -> str:
    known = isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
    return "" if known else f"expected an image's id, found {value!r:.80}"


@dataclass(frozen=True, kw_only=True)
class CaptionsColumn(TextExpansion):
    """A column of the manifest: its texts belong to the row's image."""

    name: ClassVar[str] = NAME
    column: str

    @property
    def columns(self) -> Sequence[str]:
        """The column."""
        return (self.column,)

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> ImageCaptions:
        """Those of each image of a split.

        Raises:
            UserError: no row of the split has any.
        """
        said = _of_images(dataset, kept_texts(self.source, self.column, dataset))
        return image_captions(dataset, said, name=self.name, source=self.source, most=self.most)


def _of_images(dataset: RetrievalSet, texts_C: list[list[str]]) -> Iterator[list[str]]:
    """The texts of each image's rows, a row's once: its captions share one list."""
    for image in range(dataset.num_images):
        rows = texts_C[int(dataset.caption_offsets[image]) : int(dataset.caption_offsets[image + 1])]
        yield [text for number, row in enumerate(rows) if number == 0 or row is not rows[number - 1] for text in row]

"""Additional captions of images, views of the candidate in text-to-image search: in a file of their own, or in a column of the manifest."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from rerank.expansions.additional_texts import ImageCaptions, image_captions
from rerank.expansions.base import ColumnExpansion, TextExpansion
from rerank.expansions.text_file import KeyedTexts


@dataclass(frozen=True, kw_only=True)
class CaptionsFile(TextExpansion):
    """A file with columns `image` (the image's id) and `caption` (a text) or `captions` (a list)."""

    name: ClassVar[str] = "captions"
    file: KeyedTexts

    @classmethod
    def read(cls, path: str) -> "CaptionsFile":
        """Read one whole.

        Raises:
            UserError: it is not there, lacks a column, or with every fault of its rows.
        """
        source = f"captions:{path}"
        return cls(source=source, file=KeyedTexts.read(source, path, "image", ("captions", "caption"), _id_fault, str))

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> ImageCaptions:
        """Those of each image of a split.

        Raises:
            UserError: the file names no image of the split.
        """
        proposed, noted = self.file.matched(dataset, dataset.image_ids, dataset.image_ids[0])
        return image_captions(dataset, proposed, name=self.name, source=self.source, noted=noted)


def _id_fault(value: Any) -> str:
    known = isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
    return "" if known else f"expected an image's id, found {value!r:.80}"


@dataclass(frozen=True, kw_only=True)
class CaptionsColumn(ColumnExpansion):
    """A column of the manifest: its texts belong to the row's image."""

    name: ClassVar[str] = "captions"

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> ImageCaptions:
        """Those of each image of a split.

        Raises:
            UserError: no row of the split has any.
        """
        return image_captions(dataset, _of_images(dataset, self.texts_of_captions(dataset)), name=self.name, source=self.source)


def _of_images(dataset: RetrievalSet, texts_C: list[list[str]]) -> Iterator[list[str]]:
    """The texts of each image's rows, a row's once: its captions share one list."""
    for image in range(dataset.num_images):
        rows = texts_C[int(dataset.caption_offsets[image]) : int(dataset.caption_offsets[image + 1])]
        yield [text for number, row in enumerate(rows) if number == 0 or row is not rows[number - 1] for text in row]

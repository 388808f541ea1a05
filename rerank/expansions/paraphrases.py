"""The user's own paraphrases of captions: in a file of their own, or in a column of the manifest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.processes import Processes
from rerank.expansions.base import TextExpansion
from rerank.expansions.further_texts import MOST, CaptionExpansions, caption_expansions
from rerank.expansions.text_file import read_further_texts, text_fault

NAME = "paraphrases"
NOT_THERE = "rows whose caption is not in the split"


@dataclass(frozen=True, kw_only=True)
class ParaphrasesFile(TextExpansion):
    """A file with columns `caption` and `expansion` (a text) or `expansions` (a list).

    Attributes:
        by_caption: normalised caption -> its paraphrases, in the file's order.
        num_rows: normalised caption -> rows that name it.
    """

    name: ClassVar[str] = NAME
    by_caption: dict[str, list[str]]
    num_rows: dict[str, int]

    @classmethod
    def read(cls, path: str, *, most: int = MOST) -> "ParaphrasesFile":
        """Read one whole.

        Raises:
            UserError: it is not there, lacks a column, or with every fault of its rows.
        """
        by_caption: dict[str, list[str]] = {}
        num_rows = Counter[str]()
        for caption, texts in read_further_texts(path, path, "caption", ("expansion", "expansions"), _caption_fault):
            by_caption.setdefault(normalise(caption), []).extend(texts)
            num_rows[normalise(caption)] += 1
        return cls(source=path, most=most, by_caption=by_caption, num_rows=num_rows)

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Those of each caption of a split, matched by normalised text.

        Raises:
            UserError: the file names no caption of the split.
        """
        keys = [normalise(caption) for caption in dataset.captions]
        num_not_there = sum(self.num_rows[key] for key in self.num_rows.keys() - set(keys))
        if num_not_there == sum(self.num_rows.values()):
            example, found = dataset.captions[0], next(iter(self.by_caption))
            raise UserError(
                f"{self.source}: none of its {num_not_there} row(s) names a caption of {dataset.source} (split "
                f"{dataset.split!r}); expected captions such as {example!r:.80}, found {found!r:.80}. Give the file of this split"
            )
        said = (self.by_caption.get(key, []) for key in keys)
        noted = {NOT_THERE: num_not_there} if num_not_there else {}
        return caption_expansions(dataset, said, name=self.name, source=self.source, most=self.most, noted=noted)


def _caption_fault(value: Any) -> str:
    return text_fault(value, "caption")


@dataclass(frozen=True, kw_only=True)
class ParaphrasesColumn(TextExpansion):
    """A column of the manifest: its texts in a row belong to each caption of the row."""

    name: ClassVar[str] = NAME
    column: str

    @property
    def columns(self) -> Sequence[str]:
        """The column."""
        return (self.column,)

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Those of each caption of a split.

        Raises:
            UserError: no row of the split has any.
        """
        said = kept_texts(self.source, self.column, dataset)
        return caption_expansions(dataset, said, name=self.name, source=self.source, most=self.most)


def kept_texts(asked: str, column: str, dataset: RetrievalSet) -> list[list[str]]:
    """The texts of a column beside each caption.

    Raises:
        UserError: the manifest was read without it, or it is empty in all rows of the split.
    """
    texts_C = dataset.texts.get(column)
    if texts_C is None:
        raise UserError(f"{asked}: the manifest was read without its column {column!r}; read_manifest(..., keep=[{column!r}])")
    if not any(texts_C):
        raise UserError(f"{asked}: column {column!r} of {dataset.source} is empty in every row of split {dataset.split!r}")
    return texts_C

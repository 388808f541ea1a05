"""The user's own paraphrases of captions: in a file of their own, or in a column of the manifest."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from rerank.expansions.additional_texts import CaptionExpansions, caption_expansions
from rerank.expansions.base import ColumnExpansion, TextExpansion
from rerank.expansions.text_file import KeyedTexts, text_fault


@dataclass(frozen=True, kw_only=True)
class ParaphrasesFile(TextExpansion):
    """A file with columns `caption` and `expansion` (a text) or `expansions` (a list)."""

    name: ClassVar[str] = "paraphrases"
    file: KeyedTexts

    @classmethod
    def read(cls, path: str) -> "ParaphrasesFile":
        """Read one whole.

        Raises:
            UserError: it is not there, lacks a column, or with every fault of its rows.
        """
        fault = partial(text_fault, what="caption")
        return cls(source=path, file=KeyedTexts.read(path, path, "caption", ("expansion", "expansions"), fault, normalise))

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Those of each caption of a split, matched by normalised text.

        Raises:
            UserError: the file names no caption of the split.
        """
        proposed, noted = self.file.matched(dataset, list(map(normalise, dataset.captions)), dataset.captions[0])
        return caption_expansions(dataset, proposed, name=self.name, source=self.source, noted=noted)


@dataclass(frozen=True, kw_only=True)
class ParaphrasesColumn(ColumnExpansion):
    """A column of the manifest: its texts in a row belong to each caption of the row."""

    name: ClassVar[str] = "paraphrases"

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Those of each caption of a split.

        Raises:
            UserError: no row of the split has any.
        """
        return caption_expansions(dataset, self.texts_of_captions(dataset), name=self.name, source=self.source)

"""The base classes of all ways of expanding: how it was asked for, its name, and the views it makes of a split."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.processes import Processes
from rerank.expansions.additional_texts import AdditionalTexts
from rerank.expansions.image_views import ImageViews


@dataclass(frozen=True, kw_only=True)
class Expansion(ABC):
    """One FILE_OR_METHOD, read and checked.

    Attributes:
        source: FILE_OR_METHOD as it was asked for.
    """

    source: str

    @property
    @abstractmethod
    def name(self) -> str:
        """The ending of its stages' names."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns of texts that `eval.manifest.manifest.read_manifest` must keep for it."""
        return ()

    @abstractmethod
    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> AdditionalTexts | ImageViews:
        """The additional views of a split; call on every process.

        Raises:
            UserError: it has no view of this split, or a model cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class TextExpansion(Expansion):
    """An expansion whose views are texts."""

    @abstractmethod
    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> AdditionalTexts:
        """As of `Expansion`."""


@dataclass(frozen=True, kw_only=True)
class ColumnExpansion(TextExpansion):
    """An expansion whose texts are in a column of the manifest."""

    column: str

    @property
    def columns(self) -> Sequence[str]:
        """The column."""
        return (self.column,)

    def texts_of_captions(self, dataset: RetrievalSet) -> list[list[str]]:
        """The texts in the row of each caption; captions of one row share one list.

        Raises:
            UserError: the manifest was read without the column, or it is empty in all rows of the split.
        """
        column = self.column
        texts_C = dataset.texts.get(column)
        if texts_C is None:
            raise UserError(f"{self.source}: the manifest was read without its column {column!r}; read_manifest(..., keep=[{column!r}])")
        if not any(texts_C):
            raise UserError(f"{self.source}: column {column!r} of {dataset.source} is empty in every row of split {dataset.split!r}")
        return texts_C

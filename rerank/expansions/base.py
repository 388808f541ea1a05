"""The base classes of all ways of expanding: how it was asked for, its name, and the views it makes of a split."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from rerank.expansions.additional_texts import AdditionalTexts
from rerank.expansions.image_views import ImageViews


@dataclass(frozen=True, kw_only=True)
class Expansion(ABC):
    """One FILE_OR_METHOD, read and checked.

    Attributes:
        name: the ending of its stages' names.
        source: FILE_OR_METHOD as it was asked for.
        columns: columns of texts that `eval.manifest.manifest.read_manifest` must keep for it.
    """

    name: str
    source: str
    columns: Sequence[str] = ()

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
class CropsOrFlips(Expansion):
    """`name` and `source` are the method, "crops" or "flips"."""

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> ImageViews:
        """The views of a split's images; nothing is decoded yet."""
        return ImageViews(dataset, self.name)

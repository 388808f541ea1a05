"""What every way of expanding has: the words it was asked for by, a name, and what it makes of a split."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from rerank.expansions.additional_texts import MOST, AdditionalTexts
from rerank.expansions.image_views import ImageViews


@dataclass(frozen=True, kw_only=True)
class Expansion(ABC):
    """One FILE_OR_METHOD, read and checked.

    Attributes:
        source: FILE_OR_METHOD as it was asked for.
        most: further texts of one item, at most (views of pictures have a number of their own).
    """

    source: str
    most: int = MOST

    @property
    @abstractmethod
    def name(self) -> str:
        """The arm's ending in a stage's name."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns of texts that `eval.manifest.manifest.read_manifest` must keep for it."""
        return ()

    @abstractmethod
    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> AdditionalTexts | ImageViews:
        """What it makes of a split; call on every process.

        Raises:
            UserError: it has nothing to say of this split, or a model cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class TextExpansion(Expansion):
    """One whose further views are texts."""

    @abstractmethod
    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> AdditionalTexts:
        """As of `Expansion`."""

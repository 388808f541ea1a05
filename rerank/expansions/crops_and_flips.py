"""Crops and flips as a way of expanding."""

from dataclasses import dataclass

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from rerank.expansions.base import Expansion
from rerank.expansions.image_views import ImageViews


@dataclass(frozen=True, kw_only=True)
class CropsOrFlips(Expansion):
    """`source` names the views, "crops" or "flips"."""

    @property
    def name(self) -> str:
        """The method."""
        return self.source

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> ImageViews:
        """The views of a split's images; nothing is decoded yet."""
        return ImageViews(dataset, self.source)

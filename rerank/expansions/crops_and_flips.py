"""Crops and flips as a way of expanding."""

from dataclasses import dataclass

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from rerank.expansions.base import Expansion
from rerank.expansions.image_views import VIEWS, ImageViews


@dataclass(frozen=True, kw_only=True)
class ImageViewing(Expansion):
    """`source` names the views; `most` of them, the most trusted first."""

    @property
    def name(self) -> str:
        """The method."""
        return self.source

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> ImageViews:
        """The views of a split's pictures; nothing is decoded yet."""
        return ImageViews(dataset, self.source, VIEWS[self.source][: self.most], self.source)

"""How the additional views of one side become one score, chosen on another split than the one that is measured.

    captions     expanded text queries: text to image changes
    images       expanded image queries (crops, flips): image to text changes
    candidates   additional captions of the images that a text query searches: text to image changes

Shape letter: Q queries of one direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from eval.search.ranking import Direction
from rerank.combine.combine import Pools, rank_ensemble
from rerank.combine.rules import POOLINGS, Pooling
from rerank.combine.tuning import Tried, TunedSetting, best_setting
from rerank.combine.views import EnsembleMember, LateFusion, Pool

Side = Literal["captions", "images", "candidates"]
NUMBERS = (1, 2, 4)
WEIGHTS = (1 / 4, 1 / 2, 3 / 4, 1.0)


def direction_of(side: Side) -> Direction:
    """The direction whose ranks change with the views of a side."""
    return "image_to_text" if side == "images" else "text_to_image"


def pools_at(side: Side, pool: Pool | None) -> dict[Direction, Pools]:
    """The `pools` of `rerank.combine.combine.rank_ensemble`, with a pool on one side only."""
    return {direction_of(side): (None, pool) if side == "candidates" else (pool, None)}


@dataclass(frozen=True)
class ViewSearch:
    """A search of a split in the direction that the additional views of one side change.

    Attributes:
        members: of a weight above 0, with additional views on that side.
    """

    members: Sequence[EnsembleMember]
    fusion: LateFusion
    dataset: RetrievalSet
    side: Side

    @property
    def poolings(self) -> list[Pooling]:
        """Those that can be used: reciprocal-rank pools views of queries only, and combines with the ranks of other members only."""
        pools_ranks = self.side != "candidates" and (len(self.members) == 1 or self.fusion.combination == "reciprocal-rank")
        return [pooling for pooling in POOLINGS if pooling != "reciprocal-rank" or pools_ranks]

    @property
    def most_views(self) -> int:
        """How many additional views the item with the most has."""
        views = [member.captions if self.side == "captions" else member.images for member in self.members]
        return max(int(np.diff(one.offsets).max(initial=0)) for one in views)

    def ranks(self, pool: Pool | None, processes: Processes) -> np.ndarray:
        """Rank of each query's best relevant item, int64 (Q,); pool None: without additional views."""
        direction = direction_of(self.side)
        found = rank_ensemble(
            self.members,
            self.dataset,
            weights=self.fusion.weights,
            combination=self.fusion.combination,
            pools=pools_at(self.side, pool),
            depth=1,
            directions=[direction],
            processes=processes,
        )
        return found[direction].best_ranks()


def choose_pool(
    search: ViewSearch,
    poolings: Sequence[Pooling] = POOLINGS,
    processes: Processes = Processes(),
    *,
    on_tried: Callable[[int], Any] = lambda points: None,
) -> TunedSetting[Pool | None]:
    """The pooling, number and weight of additional views with the best R@1 of the direction they change; call on every process.

    Tried are "off" (None) once, and each pooling with the first 1, 2, 4 and all views at weight 1/4, 1/2, 3/4 and 1; of poolings only
    those that can be used here. Of equally good points off, then the smallest weight, then the fewest views, then the pooling given first,
    for each view costs an embedding.

    Args:
        on_tried: called with 1 after each point.

    Raises:
        UserError: see `rerank.combine.combine.rank_ensemble`.
    """
    most = search.most_views
    numbers = sorted({number for number in (*NUMBERS, most) if 0 < number <= most})
    usable = [pooling for pooling in poolings if pooling in search.poolings]
    tried: list[Tried[Pool | None]] = []
    for pool in (None, *(Pool(pooling, number, weight) for pooling in usable for number in numbers for weight in WEIGHTS)):
        tried.append(Tried(pool, {direction_of(search.side): search.ranks(pool, processes)}))
        on_tried(1)
    return TunedSetting(best_pool(tried), tried, search.dataset)


def best_pool(tried: Sequence[Tried[Pool | None]]) -> Pool | None:
    """The pool that `choose_pool` takes; poolings count in the order they first appear."""
    order = list(dict.fromkeys(point.setting.pooling for point in tried if point.setting))
    return best_setting(tried, lambda pool: (pool.weight, pool.number, order.index(pool.pooling)) if pool else (0.0, 0, 0))

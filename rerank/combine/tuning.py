"""Settings tuned on another split than the one that is measured: all that was tried there, and what is taken. Shape letter: Q queries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.metrics import recall_at_k
from eval.search.ranking import Direction

Setting = TypeVar("Setting")
EQUAL_WITHIN = 1e-12  # sums of the same wins may end in other bits


@dataclass(frozen=True)
class Tried(Generic[Setting]):
    """One point: a setting, and the rank of each query's best relevant item, int64 (Q,), by direction that it changes."""

    setting: Setting
    ranks: Mapping[Direction, np.ndarray]


@dataclass(frozen=True)
class TunedSetting(Generic[Setting]):
    """The setting that is taken, all points in the order they were tried, and the split."""

    setting: Setting
    tried: Sequence[Tried[Setting]]
    dataset: RetrievalSet


def best_setting(tried: Sequence[Tried[Setting]], cost: Callable[[Setting], Any]) -> Setting:
    """The setting with the best mean R@1 of its directions; of equally good ones that of the least cost, then the first."""
    recalls = [np.mean([recall_at_k(ranks_Q, 1).mean() for ranks_Q in point.ranks.values()]) for point in tried]
    most = max(recalls) - EQUAL_WITHIN
    return min((point.setting for point, recall in zip(tried, recalls, strict=True) if recall >= most), key=cost)

"""Views of an image or a caption (the item itself, expansions of the caption, crops of the picture), and how their scores pool.

    max              s = (1 - w) s_0 + w max s_v
    log-sum-exp      s = (1 - w) s_0 + w (1 / scale) log mean exp(scale s_v)
    mean             the item's vector becomes unit((1 - w) v_0 + w mean v_v), and s is the cosine with that
    reciprocal-rank  s = (1 - w) / (60 + r_0) + w mean 1 / (60 + r_v)

View 0 is the item itself and counts among the v = 0..k. s_v is the cosine of view v with an item of the other side, scale the model's own,
r_v the rank of that item, from 1, with view v as the query; 60 is the constant of Cormack, Clarke, Buettcher (2009, SIGIR). An item without
additional views keeps its plain score. Where both sides have views, each view of the query is scored with the pooled gallery.

Shape letters: N items, X additional views of all items together, D width; n items of a block.
"""

from dataclasses import dataclass

import numpy as np
import torch

from rerank.combine.rules import Combination, Pooling

RANK_CONSTANT = 60

_AVERAGED_AT_ONCE = 1024


@dataclass(frozen=True)
class Views:
    """One side of a split as one model embeds it, with additional views of some of its items.

    Attributes:
        vectors_ND: float32 unit vectors, the items themselves.
        additional_XD: float32 unit vectors of the additional views, item by item.
        offsets: int64 (N + 1,); those of item n are additional_XD[offsets[n]:offsets[n + 1]], the most trusted first.
    """

    vectors_ND: np.ndarray
    additional_XD: np.ndarray
    offsets: np.ndarray

    @classmethod
    def plain(cls, vectors_ND: np.ndarray) -> "Views":
        """Items without additional views."""
        return cls(vectors_ND, vectors_ND[:0], np.zeros(len(vectors_ND) + 1, dtype=np.int64))

    def first(self, number: int) -> np.ndarray:
        """How many additional views each item has among its first `number`, int64 of shape (N,)."""
        return np.minimum(np.diff(self.offsets), number)

    def mean(self, number: int, weight: float) -> np.ndarray:
        """The pooled vectors of `mean`, float32 of shape (N, D): unit, or 0, whose cosines are all 0, where views cancel out."""
        pooled_ND = self.vectors_ND.copy()
        counts_N = self.first(number)
        items = np.flatnonzero(counts_N)
        for start in range(0, len(items), _AVERAGED_AT_ONCE):
            some = items[start : start + _AVERAGED_AT_ONCE]
            own_nD = self.vectors_ND[some].astype(np.float64)
            sum_nD = own_nD.copy()
            for view in range(1, int(counts_N[some].max()) + 1):
                has = counts_N[some] >= view
                sum_nD[has] += self.additional_XD[self.offsets[some[has]] + view - 1]
            mixed_nD = (1 - weight) * own_nD + weight * sum_nD / (1 + counts_N[some, None])
            length_n = np.sqrt((mixed_nD**2).sum(axis=1, keepdims=True))
            pooled_ND[some] = np.where(length_n > 1e-6, mixed_nD / np.maximum(length_n, 1e-6), 0)
        return pooled_ND


@dataclass(frozen=True)
class EnsembleMember:
    """One model on one split.

    Attributes:
        images, captions: as it embeds them.
        scale, bias: of the sigmoid loss: logit = scale x cosine + bias.
        device: where to search.
    """

    images: Views
    captions: Views
    scale: float
    bias: float
    device: torch.device


@dataclass(frozen=True)
class LateFusion:
    """How the scores of an ensemble's members become one: a weight for each, of sum 1, and the rule."""

    combination: Combination
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Pool:
    """How the views of one side's items become one score.

    Attributes:
        pooling: the formula.
        number: how many of an item's first additional views count; 0 or more.
        weight: in [0, 1]; 0 is the item alone.
    """

    pooling: Pooling
    number: int
    weight: float

    def changes(self, views: Views) -> bool:
        """Whether the score of any item differs from its plain one."""
        return self.weight > 0 and bool(views.first(self.number).any())

"""Views: what stands beside an image or a caption to find it by (an expansion of the caption, a crop of the picture), and how views pool.

    max              s = (1 - w) s_0 + w max s_v
    log-sum-exp      s = (1 - w) s_0 + w (1 / scale) log mean exp(scale s_v)
    mean             the item's vector becomes unit((1 - w) v_0 + w mean v_v), and s is the cosine with that
    reciprocal-rank  s = (1 - w) / (60 + r_0) + w mean 1 / (60 + r_v)

View 0 is the item itself and counts among the v = 0..k. s_v is the cosine of view v with an item of the other side, scale the model's own,
r_v the place of that item, from 1, when view v asks alone (Cormack, Clarke, Buettcher 2009, SIGIR, whose constant 60 is). An item without
further views keeps its plain score. Where both sides have views, each view of the query asks the pooled gallery.

Shape letters: N items, X further views of all items together, D width; n items of a block.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from eval.errors import UserError

Pooling = Literal["mean", "max", "log-sum-exp", "reciprocal-rank"]
Combination = Literal["logits", "standardised", "probabilities", "reciprocal-rank"]
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
RANK_CONSTANT = 60

_AVERAGED_AT_ONCE = 1024


@dataclass(frozen=True)
class Views:
    """One side of a split as one model embeds it, with further views of some of its items.

    Attributes:
        vectors_ND: float32 unit vectors, the items themselves.
        further_XD: float32 unit vectors of further views, item by item.
        offsets: int64 (N + 1,); those of item n are further_XD[offsets[n]:offsets[n + 1]], the most trusted first.
    """

    vectors_ND: np.ndarray
    further_XD: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        found = len(self.offsets), int(self.offsets[0]), int(self.offsets[-1]), self.further_XD.shape[1]
        expected = len(self.vectors_ND) + 1, 0, len(self.further_XD), self.vectors_ND.shape[1]
        if found != expected or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"views: expected (offsets, first, last, width) {expected}, rising; found {found}")

    @classmethod
    def plain(cls, vectors_ND: np.ndarray) -> "Views":
        """Items without further views."""
        return cls(vectors_ND, vectors_ND[:0], np.zeros(len(vectors_ND) + 1, dtype=np.int64))

    def first(self, number: int) -> np.ndarray:
        """How many further views each item has among its first `number`, int64 of shape (N,)."""
        return np.minimum(np.diff(self.offsets), number)

    def mean(self, number: int, weight: float) -> np.ndarray:
        """The pooled vectors of `mean`, float32 of shape (N, D): unit, or 0, which is alike to everything, where views cancel out."""
        pooled_ND = self.vectors_ND.copy()
        counts_N = self.first(number)
        items = np.flatnonzero(counts_N)
        for start in range(0, len(items), _AVERAGED_AT_ONCE):
            some = items[start : start + _AVERAGED_AT_ONCE]
            own_nD = self.vectors_ND[some].astype(np.float64)
            sum_nD = own_nD.copy()
            for view in range(1, int(counts_N[some].max()) + 1):
                has = counts_N[some] >= view
                sum_nD[has] += self.further_XD[self.offsets[some[has]] + view - 1]
            mixed_nD = (1 - weight) * own_nD + weight * sum_nD / (1 + counts_N[some, None])
            length_n = np.sqrt((mixed_nD**2).sum(axis=1, keepdims=True))
            pooled_ND[some] = np.where(length_n > 1e-6, mixed_nD / np.maximum(length_n, 1e-6), 0)
        return pooled_ND


@dataclass(frozen=True)
class Member:
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
class Pool:
    """How the views of one side's items become one score.

    Attributes:
        pooling: the formula.
        number: of the first further views of an item that count; 0 or more.
        weight: in [0, 1]; 0 is the item alone.

    Raises:
        UserError: a number or a weight out of range, or an unknown pooling.
    """

    pooling: Pooling
    number: int
    weight: float

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling: expected one of {', '.join(POOLINGS)}; found {self.pooling!r}")
        if self.number < 0 or not 0 <= self.weight <= 1:
            raise UserError(
                f"pooling {self.pooling}: expected a number of 0 or more and a weight in [0, 1]; found {self.number}, {self.weight}"
            )

    def changes(self, views: Views) -> bool:
        """Whether any item's score becomes another than its plain one."""
        return self.weight > 0 and bool(self.first_of(views).any())

    def first_of(self, views: Views) -> np.ndarray:
        """How many further views of each item count, int64 of shape (N,)."""
        return views.first(self.number)

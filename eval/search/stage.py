"""One stage of an evaluation: a ranking in both directions with its name and cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eval.search.ranking import Direction, Ranking

Sweep = Mapping[int, Mapping[Direction, np.ndarray]]
"""Rank of each query's best relevant item, int64 (Q,), had only the first K been re-ordered; by K."""


@dataclass(frozen=True)
class Stage:
    """One stage of an evaluation: its name ("base", "tuned+blip"), its ranking in both directions, and its cost.

    A reranked stage also has the name of its first stage, the number of candidates reranked, and the best ranks for smaller numbers; a
    first stage has the settings of its inputs.
    """

    name: str
    rankings: Mapping[Direction, Ranking]
    cost: Mapping[str, Any] = field(default_factory=dict)
    first_stage: str | None = None
    top_k: int | None = None
    sweep: Sweep = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def cut(self, depth: int) -> "Stage":
        """The same with so many of the best items of each query at most."""
        rankings = {
            direction: replace(one, top_indices_QK=one.top_indices_QK[:, :depth], top_scores_QK=one.top_scores_QK[:, :depth])
            for direction, one in self.rankings.items()
        }
        return replace(self, rankings=rankings)

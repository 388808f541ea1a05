"""The stage: one system of an evaluation, with its rankings and its cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.search.ranking import Direction, Ranking

Sweep = Mapping[int, Mapping[Direction, np.ndarray]]


@dataclass(frozen=True)
class Stage:
    """One stage of an evaluation: a name ("base", "tuned+blip"), its ranking in both directions, and what it cost.

    A reranked one also names its first stage, how many candidates of it were re-ordered, and the best ranks had it been fewer; a
    first stage says how it read its inputs.
    """

    name: str
    rankings: Mapping[Direction, Ranking]
    cost: Mapping[str, Any] = field(default_factory=dict)
    first_stage: str | None = None
    top_k: int | None = None
    sweep: Sweep = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)



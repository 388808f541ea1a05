"""Arms that are chosen on another split: the fused and the adaptive twin of a reranked stage, and what the report says of the choice.

    tuned+blip+sum        both scores with an equal say (weight 1)
    tuned+blip+fused      both scores, by the weight chosen
    tuned+blip+adaptive   what trails the first by the margin chosen is not scored

They are stages as any other: evaluation knows nothing of them. Their scores are those of the one scoring of "tuned+blip".
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.metrics.k_sweep import sweep_sizes
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from eval.search.stage import Stage
from rerank.reorder.fusion import Fusion, FusionChoice, choose_weight
from rerank.reorder.skipping import choose_margin, needed_lists, rerank_within
from rerank.reorder.stages import reranking_cost
from rerank.scoring.pair_scores import PairScores

SUM, FUSED, ADAPTIVE = "sum", "fused", "adaptive"


@dataclass(frozen=True)
class Asked:
    """Which arms are wanted beside the reranked one.

    Attributes:
        fusion: the fused ones.
        max_loss: the adaptive one, of at most this loss of mean R@1, a share; None: not that.
    """

    fusion: bool
    max_loss: float | None

    @property
    def any(self) -> bool:
        """True if something is chosen."""
        return self.fusion or self.max_loss is not None

    def names(self, twin: str) -> list[str]:
        """The stages that come with a reranked stage."""
        endings = [SUM, FUSED] * self.fusion + [ADAPTIVE] * (self.max_loss is not None)
        return [f"{twin}+{ending}" for ending in endings]

    def pairs(self, twin: str) -> list[tuple[str, str]]:
        """(stage, against): what is chosen against the reranked stage itself."""
        return [(name, twin) for name in self.names(twin) if not name.endswith(f"+{SUM}")]


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a reranked stage, and on what.

    Attributes:
        twin: the reranked stage.
        dataset: the split it was chosen on.
        first: the first stage on that split.
        scores: of the pairs of that split.
        fusion: None: not asked.
        margin: inf: nothing may be skipped; None: not asked.
        max_loss: what the margin was chosen for.
    """

    twin: str
    dataset: RetrievalSet
    first: Stage
    scores: PairScores
    top_k: int
    fusion: FusionChoice | None
    margin: float | None
    max_loss: float | None

    @classmethod
    def on(cls, dataset: RetrievalSet, first: Stage, scores: PairScores, scorer_name: str, top_k: int, asked: Asked) -> "Chosen":
        """Choose on a split where the first stage's `top_k` of both directions have been scored.

        Raises:
            UserError, LookupError: top_k is below 2, deeper than what the stage kept, or a pair was not scored.
        """
        fusion = choose_weight(first.rankings, scores, top_k) if asked.fusion else None
        margin = choose_margin(first.rankings, scores, top_k, asked.max_loss) if asked.max_loss is not None else None
        return cls(f"{first.name}+{scorer_name}", dataset, first, scores, top_k, fusion, margin, asked.max_loss)

    def stages(self, first: Stage, scores: PairScores, twin: Stage) -> list[Stage]:
        """The arms on the split that is measured.

        Args:
            first: the first stage there.
            scores: of its pairs.
            twin: the reranked stage there.

        Raises:
            ValueError: `twin` is another stage than the one chosen for.
            UserError, LookupError: a pair was not scored.
        """
        if twin.name != self.twin or twin.top_k is None:
            raise ValueError(f"chosen for {self.twin!r}, and asked to re-order {twin.name!r}")
        made = []
        if self.fusion is not None:
            for ending, fusion in ((SUM, replace(self.fusion.fusion, weight=1.0)), (FUSED, self.fusion.fusion)):
                made.append(_fused_stage(first, scores, twin, ending, fusion))
        if self.margin is not None:
            made.append(adaptive_stage(first, scores, twin.name, self.margin, twin.top_k))
        return made


def _fused_stage(first: Stage, scores: PairScores, twin: Stage, ending: str, fusion: Fusion) -> Stage:
    """It costs what its twin does."""
    assert twin.top_k is not None

    def at(k: int) -> dict[Direction, Ranking]:
        return {d: fusion.rank(first.rankings[d], scores, k) for d in DIRECTIONS}

    sweep = {k: {d: ranking.best_ranks() for d, ranking in at(k).items()} for k in sweep_sizes(twin.top_k)}
    cost = dict(twin.cost) | {"weight": fusion.weight}
    return Stage(f"{twin.name}+{ending}", at(twin.top_k), cost, first.name, twin.top_k, sweep)


def adaptive_stage(first: Stage, scores: PairScores, twin: str, margin: float, top_k: int) -> Stage:
    """The adaptive twin `TWIN+adaptive` of a first stage; `scores` need hold the pairs of `rerank.reorder.skipping.needed_lists` only.

    Its cost is what it takes without other arms (see `rerank.reorder.stages.reranked`).

    Raises:
        UserError, LookupError: top_k or margin cannot be used, or a pair was not scored.
    """
    started = time.perf_counter()
    rankings = {d: rerank_within(first.rankings[d], scores, top_k, margin) for d in DIRECTIONS}
    seconds = time.perf_counter() - started
    sweep = {
        k: {d: (rerank_within(first.rankings[d], scores, k, margin) if k > 1 else first.rankings[d]).best_ranks() for d in DIRECTIONS}
        for k in sweep_sizes(top_k)
    }
    needed = needed_lists([first.rankings[d] for d in DIRECTIONS], top_k, margin)
    margin_shown = margin if np.isfinite(margin) else None
    cost = reranking_cost(first, needed, [], scores, seconds) | {"top_k": top_k, "skip_margin": margin_shown}
    return Stage(f"{twin}+{ADAPTIVE}", rankings, cost, first.name, top_k, sweep)


def choose_stages(
    dataset: RetrievalSet, firsts: Sequence[Stage], scores: PairScores, scorer_name: str, top_k: int, asked: Asked
) -> list[Chosen]:
    """What is chosen for each first stage, on one split.

    Raises:
        UserError, LookupError: see `Chosen.on`.
    """
    if top_k < 2:
        raise UserError(f"top_k is {top_k}: of a single candidate there is nothing to choose; take 2 or more")
    return [Chosen.on(dataset, first, scores, scorer_name, top_k, asked) for first in firsts]


def chosen_stages(chosen: Sequence[Chosen], stages: Sequence[Stage], scores: PairScores) -> list[Stage]:
    """The arms of every choice on the split that is measured, whose first and reranked stages are among `stages`.

    Raises:
        KeyError: a stage that was chosen for is not.
        UserError, LookupError: see `Chosen.stages`.
    """
    named: dict[str, Any] = {stage.name: stage for stage in stages}
    return [arm for each in chosen for arm in each.stages(named[each.first.name], scores, named[each.twin])]

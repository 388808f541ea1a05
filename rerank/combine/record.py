"""What report.json says of ensembles and expansions: `ensemble` and `expansion`.

What holds on the split they are chosen on comes from the choice itself; what is measured, from the report's own rows (queries.parquet); a
verdict, from the report's `comparisons` where the pair stands there. Shape letters: Q queries, I images, S resamples, T points tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.differences import Differences
from eval.metrics.evaluate import Figures
from eval.metrics.metrics import recall_at_k
from eval.metrics.significance import ImageSums, interval, resample_weights
from eval.search.ranking import DIRECTIONS, Direction
from rerank.combine.combine import Combination
from rerank.combine.ensemble_weights import EnsembleChoice
from rerank.combine.equal_cost import same_seconds
from rerank.combine.expansion_effects import Moves, ViewTexts, items_of
from rerank.combine.pooling import PoolChoice, Side, direction_of
from rerank.combine.spec import ALL_VIEWS
from rerank.combine.views import Pool
from rerank.reorder.record import chosen_on


@dataclass(frozen=True)
class Held:
    """What an arm keeps in memory, in bytes: the weights of its models, and the vectors that are searched."""

    weight_bytes: int
    vector_bytes: int


@dataclass(frozen=True)
class EnsembleStage:
    """An ensemble among the stages of a report.

    Attributes:
        stage: its name.
        members: the stages of its members alone; the first is the base, whose cost the ensemble's stands beside.
        weights: one for each, of sum 1.
        held, base_held: of the ensemble and of the base.
        reranked: the base's reranked stage, if there is one: what the extra seconds would have bought.
        choice: what the weights were chosen from, on the split `chosen_on`; both None: they were given.
    """

    stage: str
    members: Sequence[str]
    weights: Sequence[float]
    combination: Combination
    held: Held
    base_held: Held
    reranked: str | None = None
    choice: EnsembleChoice | None = None
    chosen_on: RetrievalSet | None = None


@dataclass(frozen=True)
class ExpandedStage:
    """A stage with further views of one side's items.

    Attributes:
        stage, against: its name, and the stage without them.
        texts: what the views say, of the split that is measured.
        pool: what is measured; None: off, and `stage` need not be among the report's.
        view_ranks: `rerank.combine.expansion_effects.ranks_of_each_view` on the split that is measured; empty where off.
        choice: what the pool was chosen from, on the split `chosen_on`; both None: it was given.
    """

    stage: str
    against: str
    side: Side
    texts: ViewTexts
    pool: Pool | None
    view_ranks: Sequence[np.ndarray] = ()
    choice: PoolChoice | None = None
    chosen_on: RetrievalSet | None = None


def combined_sections(
    figures: Figures, dataset: RetrievalSet, ensembles: Sequence[EnsembleStage], expansions: Sequence[ExpandedStage]
) -> dict[str, Any]:
    """Further sections of a report: `ensemble` and `expansion`, an entry for each arm; absent where there is none.

    Args:
        figures: of the split that is measured, `dataset`, with the arms, their members and what they stand against among its stages.
    """
    found = Differences(figures, dataset)
    ensemble = [_ensemble_record(found, arm) for arm in ensembles]
    expansion = [_expansion_record(found, arm) for arm in expansions]
    return ({"ensemble": ensemble} if ensemble else {}) | ({"expansion": expansion} if expansion else {})


def expansion_table(figures: Figures, dataset: RetrievalSet, expansions: Sequence[ExpandedStage]) -> pa.Table | None:
    """expansions.parquet: a row for each view of each query of every arm that is on; None where none is."""
    found, parts = Differences(figures, dataset), []
    for arm in expansions:
        if arm.pool is not None:
            ids = dataset.image_ids if arm.side == "images" else dataset.caption_ids
            parts.append(_moves(found, arm, arm.pool).table(arm.stage, ids))
    return pa.concat_tables(parts) if parts else None


def _ensemble_record(found: Differences, arm: EnsembleStage) -> dict[str, Any]:
    recalls = {stage: found.recalls_at_1(stage) for stage in (*arm.members, arm.stage)}
    weights = [float(weight) for weight in arm.weights]
    members = list(zip(arm.members, weights, strict=True))
    cost = _ensemble_cost(found, arm)
    measured = [
        {"stage": stage, "weight": weight, "R@1": recalls[stage]} | found.verdict(arm.stage, stage, "both") for stage, weight in members
    ]
    itself = {"delta": None, "ci95": None, "p_value": None, "verdict": None, "in_comparisons": None}
    return {
        "stage": arm.stage,
        "members": [{"stage": stage, "weight": weight} for stage, weight in members],
        "combination": arm.combination,
        "weights": weights,
        "chosen_on": chosen_on(arm.chosen_on) if arm.chosen_on is not None else None,
        "curve": _weight_curve(arm.choice, arm.chosen_on) if arm.choice is not None and arm.chosen_on is not None else [],
        "measured": [*measured, {"stage": arm.stage, "weight": None, "R@1": recalls[arm.stage]} | itself],
        "better_member": max(arm.members, key=lambda stage: recalls[stage]["both"]),
        "cost": cost,
        "same_seconds": same_seconds(found, arm.stage, arm.members[0], arm.reranked, cost["extra_seconds"]) if arm.reranked else None,
    }


def _ensemble_cost(found: Differences, arm: EnsembleStage) -> dict[str, Any]:
    base = arm.members[0]
    sides = {"ensemble": _cost(found, arm.stage, arm.held), "base": _cost(found, base, arm.base_held) | {"stage": base}}
    return sides | {"extra_seconds": sides["ensemble"]["seconds"] - sides["base"]["seconds"]}


def _cost(found: Differences, stage: str, held: Held) -> dict[str, Any]:
    """Seconds of the whole stage, images a second while they are embedded, and bytes."""
    cost = found.figures.stages[stage]["cost"]
    image_seconds = cost.get("image_seconds", 0.0)
    return {
        "seconds": float(cost.get("seconds", 0.0)),
        "images_per_second": found.dataset.num_images / image_seconds if image_seconds > 0 else None,
        "weight_bytes": held.weight_bytes,
        "vector_bytes": held.vector_bytes,
    }


def _weight_curve(choice: EnsembleChoice, dataset: RetrievalSet) -> list[dict[str, Any]]:
    """R@1 of every point that was tried, with intervals, on the split it was tried on."""
    shares = {direction: _shares([point.ranks[direction] for point in choice.tried], direction, dataset) for direction in DIRECTIONS}
    means_ET, resampled_EST = (np.stack(parts) for parts in zip(*shares.values(), strict=True))
    keys = [*DIRECTIONS, "both"]
    means_AT = np.concatenate([means_ET, means_ET.mean(axis=0)[None]])
    bounds_A2T = [interval(samples_ST) for samples_ST in (*resampled_EST, resampled_EST.mean(axis=0))]
    return [
        {
            "combination": point.combination,
            "weights": [float(weight) for weight in point.weights],
            "R@1": {key: float(means_AT[row, column]) for row, key in enumerate(keys)},
            "ci95": {key: bounds_A2T[row][:, column].tolist() for row, key in enumerate(keys)},
        }
        for column, point in enumerate(choice.tried)
    ]


def _shares(ranks: Sequence[np.ndarray], direction: Direction, dataset: RetrievalSet) -> tuple[np.ndarray, np.ndarray]:
    """R@1 of each of T rankings, shape (T,), and in each resample of images, shape (S, T)."""
    image_Q = np.arange(dataset.num_images) if direction == "image_to_text" else dataset.caption_image_C
    sums = ImageSums.of(np.stack([recall_at_k(ranks_Q, 1) for ranks_Q in ranks], axis=1), image_Q, dataset.num_images)
    return sums.means(), sums.resampled_means(resample_weights(dataset.num_images))


def _expansion_record(found: Differences, arm: ExpandedStage) -> dict[str, Any]:
    counts, views = np.diff(arm.texts.offsets), arm.texts.record()
    before, _, ending = arm.stage.rpartition("+")
    name = ending if before == arm.against else arm.texts.name  # a second expansion of a kind is called NAME-2
    record = {
        "stage": arm.stage,
        "against": arm.against,
        "name": name,
        "side": arm.side,
        "direction": direction_of(arm.side),
        "chosen_on": chosen_on(arm.chosen_on) if arm.chosen_on is not None else None,
        "pool": _pool_record(arm.pool),
        "curve": _pool_curve(arm.choice, arm.chosen_on) if arm.choice is not None and arm.chosen_on is not None else [],
        "num_items": len(counts),
        "num_expanded": int((counts > 0).sum()),
        "num_views": int(counts.sum()),
        "dropped": views.get("dropped", {}),
        "views": views,
    }
    if arm.pool is None:
        advice = (
            "No number, pooling or weight of these views did better than none where it was chosen: they are off." if arm.choice else None
        )
        return record | {"num_views_used": 0, "num_looked_at": 0, "measured": {}, "moved": None, "examples": [], "advice": advice}
    moves, direction = _moves(found, arm, arm.pool), direction_of(arm.side)
    measured = found.verdict(arm.stage, arm.against, direction)
    return record | {
        "num_views_used": int(np.minimum(counts, arm.pool.number).sum()),
        "num_looked_at": len(arm.view_ranks),
        "measured": {direction: {"R@1": found.recalls_at_1(arm.stage)[direction]} | measured},
        "moved": moves.counts(),
        "examples": moves.examples(found.dataset),
        "advice": f"It hurts: {name} should stay off." if measured["verdict"] == "worse" else None,
    }


def _moves(found: Differences, arm: ExpandedStage, pool: Pool) -> Moves:
    direction = direction_of(arm.side)
    before_Q, after_Q = (found.arm(stage, direction).ranks_Q for stage in (arm.against, arm.stage))
    return Moves(arm.side, arm.texts, items_of(found.dataset, arm.side), before_Q, after_Q, arm.view_ranks, pool.number)


def _pool_record(pool: Pool | None) -> dict[str, Any] | None:
    """number null: all views."""
    if pool is None:
        return None
    return {"pooling": pool.pooling, "number": pool.number if pool.number < ALL_VIEWS else None, "weight": pool.weight}


def _pool_curve(choice: PoolChoice, dataset: RetrievalSet) -> list[dict[str, Any]]:
    """R@1 of every pool that was tried, in the direction that changes, with its interval; pool null: off."""
    means_T, resampled_ST = _shares([point.ranks_Q for point in choice.tried], direction_of(choice.side), dataset)
    bounds_2T = interval(resampled_ST)
    return [
        {"pool": _pool_record(point.pool), "R@1": float(means_T[column]), "ci95": bounds_2T[:, column].tolist()}
        for column, point in enumerate(choice.tried)
    ]

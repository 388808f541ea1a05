"""Sections of a report on ensembles and expansions: `ensemble` and `expansion`.

What holds on the split they are chosen on comes from the choice itself; what is measured, from the report's own rows (queries.parquet); a
verdict, from the report's `comparisons` where the pair is there. Shape letters: Q queries, I images, S resamples, T points tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.differences import Differences
from eval.metrics.evaluate import Figures
from eval.metrics.metrics import recall_at_k
from eval.metrics.significance import ImageSums, interval, resample_weights
from eval.report.section import Section, SectionFormat
from eval.search.ranking import DIRECTIONS, Direction
from rerank.combine.combine import Combination
from rerank.combine.ensemble_weights import EnsembleChoice
from rerank.combine.equal_cost import same_seconds
from rerank.combine.expansion_effects import Moves, ViewTexts, items_of
from rerank.combine.pooling import PoolChoice, Side, direction_of
from rerank.combine.sentences import (
    COMBINATION_WORDS,
    SIDE_WORDS,
    best_points,
    ensemble_line,
    expansion_lines,
    pool_in_words,
    weight_curves,
)
from rerank.combine.spec import ALL_VIEWS
from rerank.combine.views import Pool


@dataclass(frozen=True)
class MemoryFootprint:
    """What a stage has in memory, in bytes: the weights of its models, and the vectors that are searched."""

    weight_bytes: int
    vector_bytes: int


@dataclass(frozen=True, kw_only=True)
class EnsembleStage:
    """An ensemble among the stages of a report.

    Attributes:
        stage: its name.
        members: the stages of its members alone; the ensemble's cost is compared with that of the first.
        weights: one for each, of sum 1.
        footprint, first_footprint: of the ensemble and of its first member.
        reranked: the first member's reranked stage, if there is one: what the extra seconds would have bought.
        choice: what the weights were chosen from, on the split `chosen_on`; both None: they were given.
    """

    stage: str
    members: Sequence[str]
    weights: Sequence[float]
    combination: Combination
    footprint: MemoryFootprint
    first_footprint: MemoryFootprint
    reranked: str | None = None
    choice: EnsembleChoice | None = None
    chosen_on: RetrievalSet | None = None


@dataclass(frozen=True, kw_only=True)
class ExpandedStage:
    """A stage with additional views of one side's items.

    Attributes:
        stage, against: its name, and the stage without them.
        name: of the expansion, unique among a report's.
        texts: the texts of the views, of the split that is measured.
        pool: what is measured; None: off, and `stage` need not be among the report's.
        view_ranks: `rerank.combine.expansion_effects.ranks_of_each_view` on the split that is measured; empty where off.
        choice: what the pool was chosen from, on the split `chosen_on`; both None: it was given.
    """

    stage: str
    against: str
    name: str
    side: Side
    texts: ViewTexts
    pool: Pool | None
    view_ranks: Sequence[np.ndarray] = ()
    choice: PoolChoice | None = None
    chosen_on: RetrievalSet | None = None


def combined_sections(
    figures: Figures, dataset: RetrievalSet, ensembles: Sequence[EnsembleStage], expansions: Sequence[ExpandedStage]
) -> list[Section]:
    """`ensemble` and `expansion`, an entry for each stage; absent where there is none.

    Args:
        figures: of the split that is measured, `dataset`, with these stages, the members and what they are compared with among its stages.
    """
    found = Differences(figures, dataset)
    ensemble = [_ensemble_record(found, each) for each in ensembles]
    expansion = [_expansion_record(found, each) for each in expansions]
    return ([Section(ENSEMBLES, ensemble)] if ensemble else []) + ([Section(EXPANSIONS, expansion)] if expansion else [])


def expansion_table(figures: Figures, dataset: RetrievalSet, expansions: Sequence[ExpandedStage]) -> pa.Table | None:
    """expansions.parquet: a row for each view of each query of every stage that uses them; None where none does."""
    found, parts = Differences(figures, dataset), []
    for expanded in expansions:
        if expanded.pool is not None:
            ids = dataset.image_ids if expanded.side == "images" else dataset.caption_ids
            parts.append(_moves(found, expanded, expanded.pool).table(expanded.stage, ids))
    return pa.concat_tables(parts) if parts else None


def _ensemble_record(found: Differences, ensemble: EnsembleStage) -> dict[str, Any]:
    recalls = {stage: found.recalls_at_1(stage) for stage in (*ensemble.members, ensemble.stage)}
    weights = [float(weight) for weight in ensemble.weights]
    members = list(zip(ensemble.members, weights, strict=True))
    cost, choice, chosen_set = _ensemble_cost(found, ensemble), ensemble.choice, ensemble.chosen_on
    measured = [
        {"stage": stage, "weight": weight, "R@1": recalls[stage]} | found.verdict(ensemble.stage, stage, "both")
        for stage, weight in members
    ]
    itself = {"delta": None, "ci95": None, "p_value": None, "verdict": None, "in_comparisons": None}
    return {
        "stage": ensemble.stage,
        "members": [{"stage": stage, "weight": weight} for stage, weight in members],
        "combination": ensemble.combination,
        "weights": weights,
        "chosen_on": chosen_set.record() if chosen_set is not None else None,
        "curve": _weight_curve(choice, chosen_set) if choice is not None and chosen_set is not None else [],
        "measured": [*measured, {"stage": ensemble.stage, "weight": None, "R@1": recalls[ensemble.stage]} | itself],
        "better_member": max(ensemble.members, key=lambda stage: recalls[stage]["both"]),
        "cost": cost,
        "same_seconds": same_seconds(found, ensemble.stage, ensemble.members[0], ensemble.reranked, cost["extra_seconds"])
        if ensemble.reranked is not None
        else None,
    }


def _ensemble_cost(found: Differences, ensemble: EnsembleStage) -> dict[str, Any]:
    first = ensemble.members[0]
    base = _cost(found, first, ensemble.first_footprint) | {"stage": first}
    sides = {"ensemble": _cost(found, ensemble.stage, ensemble.footprint), "base": base}
    return sides | {"extra_seconds": sides["ensemble"]["seconds"] - sides["base"]["seconds"]}


def _cost(found: Differences, stage: str, footprint: MemoryFootprint) -> dict[str, Any]:
    """Seconds of the whole stage, images a second while they are embedded, and bytes."""
    cost = found.figures.stages[stage]["cost"]
    image_seconds = cost.get("image_seconds", 0.0)
    return {
        "seconds": float(cost.get("seconds", 0.0)),
        "images_per_second": found.dataset.num_images / image_seconds if image_seconds > 0 else None,
        "weight_bytes": footprint.weight_bytes,
        "vector_bytes": footprint.vector_bytes,
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


def _expansion_record(found: Differences, expanded: ExpandedStage) -> dict[str, Any]:
    counts, views = np.diff(expanded.texts.offsets), expanded.texts.record()
    record = {
        "stage": expanded.stage,
        "against": expanded.against,
        "name": expanded.name,
        "side": expanded.side,
        "direction": direction_of(expanded.side),
        "chosen_on": expanded.chosen_on.record() if expanded.chosen_on is not None else None,
        "pool": _pool_record(expanded.pool),
        "curve": _pool_curve(expanded.choice, expanded.chosen_on) if expanded.choice is not None and expanded.chosen_on is not None else [],
        "num_items": len(counts),
        "num_expanded": int((counts > 0).sum()),
        "num_views": int(counts.sum()),
        "dropped": views.get("dropped", {}),
        "views": views,
    }
    if expanded.pool is None:
        chosen_off = "No number, pooling or weight of these views did better than none where it was chosen: they are off."
        advice = chosen_off if expanded.choice else None
        return record | {"num_views_used": 0, "num_looked_at": 0, "measured": {}, "moved": None, "examples": [], "advice": advice}
    moves, direction = _moves(found, expanded, expanded.pool), direction_of(expanded.side)
    measured = found.verdict(expanded.stage, expanded.against, direction)
    return record | {
        "num_views_used": int(np.minimum(counts, expanded.pool.number).sum()),
        "num_looked_at": len(expanded.view_ranks),
        "measured": {direction: {"R@1": found.recalls_at_1(expanded.stage)[direction]} | measured},
        "moved": moves.counts(),
        "examples": moves.examples(found.dataset),
        "advice": f"It hurts: {expanded.name} should stay off." if measured["verdict"] == "worse" else None,
    }


def _moves(found: Differences, expanded: ExpandedStage, pool: Pool) -> Moves:
    direction = direction_of(expanded.side)
    before_Q, after_Q = (found.metrics(stage, direction).ranks_Q for stage in (expanded.against, expanded.stage))
    return Moves(expanded.side, expanded.texts, items_of(found.dataset, expanded.side), before_Q, after_Q, expanded.view_ranks, pool.number)


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


_TEMPLATES = Path(__file__).parent / "templates"
ENSEMBLES = SectionFormat(
    key="ensemble",
    template=_TEMPLATES / "ensemble.html.j2",
    lines=lambda record, data: [ensemble_line(each) for each in record],
    names={"combination_words": COMBINATION_WORDS, "weight_curves": weight_curves, "best_points": best_points},
)
EXPANSIONS = SectionFormat(
    key="expansion",
    template=_TEMPLATES / "expansion.html.j2",
    lines=lambda record, data: [line for each in record for line in expansion_lines(each, data["split"])],
    names={"pool_in_words": pool_in_words, "side_words": SIDE_WORDS},
)

"""Sections of a report on ensembles and expansions: `ensemble` and `expansion`.

What holds on the split they are chosen on comes from the choice itself; what is measured, from the report's own rows (queries.parquet); a
verdict, from the report's `comparisons` where the pair is there. Shape letters: Q queries, I images, S resamples, T points tried.
"""

from collections.abc import Mapping, Sequence
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
from eval.search.stage import Stage
from rerank.combine.equal_cost import same_seconds
from rerank.combine.expansion_effects import ExpandedStage, Moves, items_of
from rerank.combine.pooling import direction_of
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
from rerank.combine.tuning import TunedSetting
from rerank.combine.views import LateFusion, Pool
from rerank.reorder.record import split_in_words
from rerank.stage_names import ENSEMBLE


@dataclass(frozen=True, kw_only=True)
class EnsembleStage:
    """The ensemble among the stages of a report.

    Attributes:
        members: the stages of its members alone.
        first: that of the first member, with whose cost the ensemble's is compared.
        footprint, first_footprint: weight_bytes and vector_bytes, in memory, of the ensemble and of its first member.
        reranked: the first member's reranked stage, if there is one: what the extra seconds would have bought.
        choice: what the weights were chosen from; None: they were given.
    """

    members: Sequence[str]
    first: Stage
    fusion: LateFusion
    footprint: Mapping[str, int]
    first_footprint: Mapping[str, int]
    reranked: str | None = None
    choice: TunedSetting[LateFusion] | None = None


def combined_sections(
    figures: Figures, dataset: RetrievalSet, ensemble: EnsembleStage | None, expansions: Sequence[ExpandedStage]
) -> list[Section]:
    """`ensemble`, and `expansion` with an entry for each stage; absent where there is none.

    Args:
        figures: of the split that is measured, `dataset`, with these stages, the members and what they are compared with among its stages.
    """
    found = Differences(figures, dataset)
    sections = [Section(ENSEMBLES, [_ensemble_record(found, ensemble)])] if ensemble is not None else []
    return sections + ([Section(EXPANSIONS, [_expansion_record(found, each) for each in expansions])] if expansions else [])


def expansion_table(figures: Figures, dataset: RetrievalSet, expansions: Sequence[ExpandedStage]) -> pa.Table | None:
    """expansions.parquet: a row for each view of each query of every stage that uses them; None where none does."""
    found, parts = Differences(figures, dataset), []
    for expanded in expansions:
        if expanded.pool is not None:
            ids = dataset.image_ids if expanded.side == "images" else dataset.caption_ids
            parts.append(_moves(found, expanded).table(ids))
    return pa.concat_tables(parts) if parts else None


def _ensemble_record(found: Differences, ensemble: EnsembleStage) -> dict[str, Any]:
    recalls = {stage: found.recalls_at_1(stage) for stage in (*ensemble.members, ENSEMBLE)}
    fusion, choice, first = ensemble.fusion, ensemble.choice, ensemble.first.name
    members: list[dict[str, Any]] = [
        {"stage": stage, "weight": weight} for stage, weight in zip(ensemble.members, fusion.weights, strict=True)
    ]
    cost, base = _cost(found, ENSEMBLE, ensemble.footprint), _cost(found, first, ensemble.first_footprint)
    extra_seconds = cost["seconds"] - base["seconds"]
    itself = {"delta": None, "ci95": None, "p_value": None, "verdict": None, "in_comparisons": None}
    return {
        "stage": ENSEMBLE,
        "members": members,
        "combination": fusion.combination,
        "weights": list(fusion.weights),
        "chosen_on": choice.dataset.record() if choice is not None else None,
        "curve": [
            {"combination": point.setting.combination, "weights": list(point.setting.weights)} | row
            for point, row in zip(choice.tried, _curve(choice), strict=True)
        ]
        if choice is not None
        else [],
        "measured": [
            *(one | {"R@1": recalls[one["stage"]]} | found.verdict(ENSEMBLE, one["stage"], "both") for one in members),
            {"stage": ENSEMBLE, "weight": None, "R@1": recalls[ENSEMBLE]} | itself,
        ],
        "better_member": max(ensemble.members, key=lambda stage: recalls[stage]["both"]),
        "cost": {"ensemble": cost, "base": base | {"stage": first}, "extra_seconds": extra_seconds},
        "same_seconds": same_seconds(found, ENSEMBLE, ensemble.first, ensemble.reranked, extra_seconds) if ensemble.reranked else None,
    }


def _cost(found: Differences, stage: str, footprint: Mapping[str, int]) -> dict[str, Any]:
    """Seconds of the whole stage, images a second while they are embedded, and bytes."""
    cost = found.figures.stages[stage]["cost"]
    image_seconds = cost.get("image_seconds", 0.0)
    images_per_second = found.dataset.num_images / image_seconds if image_seconds > 0 else None
    return {"seconds": float(cost.get("seconds", 0.0)), "images_per_second": images_per_second, **footprint}


def _curve(choice: TunedSetting[Any]) -> list[dict[str, dict[str, Any]]]:
    """R@1 of every point and its interval, on the split it was tried on: by direction, and the mean of two as `both`."""
    dataset, means_T, resampled_ST = choice.dataset, dict[str, np.ndarray](), dict[str, np.ndarray]()
    for direction in choice.tried[0].ranks:
        image_Q = np.arange(dataset.num_images) if direction == "image_to_text" else dataset.caption_image_C
        found_QT = np.stack([recall_at_k(point.ranks[direction], 1) for point in choice.tried], axis=1)
        sums = ImageSums.of(found_QT, image_Q, dataset.num_images)
        means_T[direction], resampled_ST[direction] = sums.means(), sums.resampled_means(resample_weights(dataset.num_images))
    if len(means_T) > 1:
        means_T["both"], resampled_ST["both"] = (np.mean(list(each.values()), axis=0) for each in (means_T, resampled_ST))
    bounds_2T = {key: interval(samples_ST) for key, samples_ST in resampled_ST.items()}
    return [
        {
            "R@1": {key: float(means_T[key][column]) for key in means_T},
            "ci95": {key: bounds_2T[key][:, column].tolist() for key in means_T},
        }
        for column in range(len(choice.tried))
    ]


def _expansion_record(found: Differences, expanded: ExpandedStage) -> dict[str, Any]:
    counts, views = np.diff(expanded.texts.offsets), expanded.texts.record()
    choice, direction = expanded.choice, direction_of(expanded.side)
    record = {
        "stage": expanded.stage,
        "against": expanded.against,
        "name": expanded.name,
        "side": expanded.side,
        "direction": direction,
        "chosen_on": choice.dataset.record() if choice is not None else None,
        "pool": _pool_record(expanded.pool),
        "curve": [
            {"pool": _pool_record(point.setting), "R@1": row["R@1"][direction], "ci95": row["ci95"][direction]}
            for point, row in zip(choice.tried, _curve(choice), strict=True)
        ]
        if choice is not None
        else [],
        "num_items": len(counts),
        "num_expanded": int((counts > 0).sum()),
        "num_views": int(counts.sum()),
        "dropped": views.get("dropped", {}),
        "views": views,
    }
    if expanded.pool is None:
        chosen_off = "No number, pooling or weight of these views did better than none where it was chosen: they are off."
        advice = chosen_off if choice is not None else None
        return record | {"num_views_used": 0, "num_looked_at": 0, "measured": {}, "moved": None, "examples": [], "advice": advice}
    moves = _moves(found, expanded)
    measured = found.verdict(expanded.stage, expanded.against, direction)
    return record | {
        "num_views_used": int(np.minimum(counts, expanded.pool.number).sum()),
        "num_looked_at": len(expanded.view_ranks),
        "measured": {direction: {"R@1": found.recalls_at_1(expanded.stage)[direction]} | measured},
        "moved": moves.counts(),
        "examples": moves.examples(found.dataset),
        "advice": f"It hurts: {expanded.name} should stay off." if measured["verdict"] == "worse" else None,
    }


def _moves(found: Differences, expanded: ExpandedStage) -> Moves:
    before_Q, after_Q = (found.metrics(stage, direction_of(expanded.side)).ranks_Q for stage in (expanded.against, expanded.stage))
    return Moves(expanded, items_of(found.dataset, expanded.side), before_Q, after_Q)


def _pool_record(pool: Pool | None) -> dict[str, Any] | None:
    """None: off; number null: all views."""
    if pool is None:
        return None
    return {"pooling": pool.pooling, "number": pool.number if pool.number < ALL_VIEWS else None, "weight": pool.weight}


_TEMPLATES = Path(__file__).parent / "templates"
ENSEMBLES = SectionFormat(
    key="ensemble",
    title="Ensembles",
    chosen=lambda record: {each["stage"]: f"weights chosen on {split_in_words(each)}" for each in record if each["chosen_on"]},
    template=_TEMPLATES / "ensemble.html.j2",
    lines=lambda record, data: [ensemble_line(each) for each in record],
    names={"combination_words": COMBINATION_WORDS, "weight_curves": weight_curves, "best_points": best_points},
)
EXPANSIONS = SectionFormat(
    key="expansion",
    title="Additional views of queries and images",
    chosen=lambda record: {
        each["stage"]: f"pooling, number and weight chosen on {split_in_words(each)}"
        for each in record
        if each["chosen_on"] and each["pool"]
    },
    template=_TEMPLATES / "expansion.html.j2",
    lines=lambda record, data: [line for each in record for line in expansion_lines(each, data["split"])],
    names={"pool_in_words": pool_in_words, "side_words": SIDE_WORDS},
)

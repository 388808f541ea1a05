"""From rankings to figures: one table with a row a query, then means, intervals and comparisons computed from that table and nothing else.

Shape letters: S resamples, I images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.metrics import outcomes
from eval.metrics.checks import RankingCheck, pair_faults
from eval.metrics.comparison import compare
from eval.metrics.failures import choose_failures
from eval.metrics.k_sweep import r1_by_size, read_sweep, sweep_column, sweep_rows
from eval.metrics.metrics import average_precision_at_r, r_precision, recall_at_k
from eval.metrics.outcomes import Step, outcome_rows
from eval.metrics.significance import resample_weights
from eval.metrics.slices import slice_rows
from eval.metrics.stage_metrics import StageMetrics
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from eval.search.stage import Stage

_SHOWN_SHARES = ((outcomes.FIXED, 4), (outcomes.BROKEN, 3), (outcomes.WRONG, 2), (outcomes.MISSING, 1))
"""Queries of a direction and step that the page shows."""


@dataclass(frozen=True)
class Figures:
    """What was measured, by the keys of report.json, with the per-query table it was computed from.

    Attributes:
        shown: queries that the page shows, rows as of `failures`: of the first comparison, then of what reranks its stage.
    """

    data: dict[str, Any]
    stages: dict[str, Any]
    comparisons: list[dict[str, Any]]
    queries: pa.Table
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    slices: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)


def evaluate(dataset: RetrievalSet, stages: Sequence[Stage], pairs: Sequence[tuple[str, str]] | None = None) -> Figures:
    """Measure stages and compare pairs of them.

    Args:
        pairs: (stage, against) names; default: each stage against the one before.

    Raises:
        UserError: a stage is there twice, lacks a direction or a query, or holds what is not a number; a pair names no stage.
    """
    table = query_table(dataset, stages, pairs or ())
    image_number = {name: number for number, name in enumerate(dataset.image_ids)}
    weights_SI = resample_weights(dataset.num_images)
    measured = {
        (stage.name, direction): StageMetrics.of(table, stage.name, direction, image_number) for stage in stages for direction in DIRECTIONS
    }
    figures: dict[str, Any] = {}
    for stage in stages:
        figures[stage.name] = {direction: measured[stage.name, direction].figures(weights_SI) for direction in DIRECTIONS} | {
            "cost": dict(stage.cost)
        }
        if stage.inputs:
            figures[stage.name]["inputs"] = dict(stage.inputs)
        if stage.first_stage is not None and stage.top_k is not None:
            first = {direction: measured[stage.first_stage, direction] for direction in DIRECTIONS}
            sweep = read_sweep(table, stage.name)
            figures[stage.name] |= {
                # R@1 of a reranker that never errs: the first stage's R@K
                "ceiling": {d: float(recall_at_k(first[d].ranks_Q, stage.top_k).mean()) for d in DIRECTIONS},
                "k_sweep": sweep_rows(sweep, first, weights_SI),
                "r1_by_k": r1_by_size(sweep),
            }
    chosen = list(zip([s.name for s in stages[1:]], [s.name for s in stages], strict=False)) if pairs is None else list(pairs)
    steps = _steps(stages, chosen)
    shown, rankings = _headline(steps, chosen), {stage.name: stage.rankings for stage in stages}
    firsts = {(stage.name, direction): rankings[stage.first_stage or stage.name][direction] for stage in stages for direction in DIRECTIONS}
    return Figures(
        {"source": dataset.source} | dataset.record(),
        figures,
        compare(measured, chosen, weights_SI),
        table,
        outcomes=outcome_rows(measured, steps),
        slices=slice_rows(dataset, measured, firsts, weights_SI),
        failures=choose_failures(dataset, measured, rankings[shown.stage], shown) if shown is not None else [],
        shown=[
            row
            for step in _shown_steps(steps, chosen)
            for direction in DIRECTIONS
            for row in choose_failures(dataset, measured, rankings[step.stage], step, directions=(direction,), shares=_SHOWN_SHARES)
        ],
    )


def _steps(stages: Sequence[Stage], pairs: Sequence[tuple[str, str]]) -> list[Step]:
    """From one stage to another: what is compared, and each reranking."""
    steps = [Step(stage.name, stage.first_stage, stage.top_k) for stage in stages if stage.first_stage is not None]
    reranked = [(step.stage, step.against) for step in steps]
    return [Step(*pair, None) for pair in pairs if pair not in reranked] + steps


def _headline(steps: Sequence[Step], pairs: Sequence[tuple[str, str]]) -> Step | None:
    """The step whose queries are shown: the reranking of the first comparison's stage, or else that comparison itself."""
    if not steps:
        return None
    asked = pairs[0][0] if pairs else steps[-1].stage
    return next((step for step in steps if step.top_k is not None and asked in (step.stage, step.against)), steps[0])


def _shown_steps(steps: Sequence[Step], pairs: Sequence[tuple[str, str]]) -> list[Step]:
    """The steps whose queries the page shows: the first comparison, and the reranking of its stage."""
    headline = _headline(steps, pairs)
    first = [step for step in steps if pairs and (step.stage, step.against) == pairs[0]]
    return list(dict.fromkeys([*first, *([headline] if headline is not None else [])]))


def values_of(dataset: RetrievalSet, stage: Stage) -> dict[Direction, dict[str, float]]:
    """Each metric of one stage, without the intervals, bins and slices of a report: what an evaluation between steps needs.

    Raises:
        UserError: the stage cannot be measured.
    """
    return row_values(dataset, query_table(dataset, [stage]), stage.name)


def row_values(dataset: RetrievalSet, rows: pa.Table, stage: str) -> dict[Direction, dict[str, float]]:
    """The same from the stage's rows of `query_table`."""
    image_number = {name: number for number, name in enumerate(dataset.image_ids)}
    return {direction: StageMetrics.of(rows, stage, direction, image_number).values() for direction in DIRECTIONS}


def _check_stages(dataset: RetrievalSet, stages: Sequence[Stage], pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse what would end in a wrong figure, every fault at once, naming the stage and up to five queries."""
    names = [stage.name for stage in stages]
    faults = [f"stage {name!r} is there {count} times; give each its own name" for name, count in Counter(names).items() if count > 1]
    check = RankingCheck(dataset)
    if fault := check.data_fault():
        faults.append(fault)
    for stage in stages:
        for direction in DIRECTIONS:
            if direction not in stage.rankings:
                faults.append(f"stage {stage.name!r} has no ranking {direction}; found: {', '.join(stage.rankings) or 'none'}")
            elif fault := check.fault(direction, stage.rankings[direction]):
                faults.append(f"stage {stage.name!r}, {direction}: {fault}")
        if stage.first_stage is not None and stage.first_stage not in names:
            faults.append(f"stage {stage.name!r} re-orders {stage.first_stage!r}, which is not measured here; measured: {names}")
    faults += [f"comparisons: {fault}" for fault in pair_faults(pairs, names)]
    if faults:
        raise UserError("; ".join(faults))


def query_table(dataset: RetrievalSet, stages: Sequence[Stage], pairs: Sequence[tuple[str, str]] = ()) -> pa.Table:
    """The rows of queries.parquet: stage, direction, query_id, image_id, rank, num_positives, ap_at_r, r_precision, top_ids, top_scores,
    rank_at_k.

    image_id is the query itself, or the image the querying caption belongs to: the unit that is drawn.

    Raises:
        UserError: as `evaluate`.
    """
    _check_stages(dataset, stages, pairs)
    image_ids = list(dataset.image_ids)
    caption_ids = list(dataset.caption_ids)
    own_image_ids = [image_ids[image] for image in dataset.caption_image_C]
    parts = []
    for stage in stages:
        for direction, ranking in stage.rankings.items():
            queries, gallery = (image_ids, caption_ids) if direction == "image_to_text" else (caption_ids, image_ids)
            rows = _stage_rows(stage.name, ranking, queries, image_ids if direction == "image_to_text" else own_image_ids, gallery)
            parts.append(rows.append_column("rank_at_k", sweep_column(stage.sweep, direction, ranking.num_queries)))
    return pa.concat_tables(parts)


def _stage_rows(name: str, ranking: Ranking, queries: list[str], images: list[str], gallery: list[str]) -> pa.Table:
    num, depth = ranking.num_queries, ranking.depth
    offsets = pa.array(np.arange(num + 1, dtype=np.int32) * depth)
    top_ids = pa.array(gallery).take(pa.array(ranking.top_indices_QK.ravel()))
    return pa.table(
        {
            "stage": pa.repeat(name, num),
            "direction": pa.repeat(ranking.direction, num),
            "query_id": queries,
            "image_id": images,
            "rank": ranking.best_ranks(),
            "num_positives": np.diff(ranking.positive_offsets),
            "ap_at_r": average_precision_at_r(ranking.positive_offsets, ranking.positive_ranks_P),
            "r_precision": r_precision(ranking.positive_offsets, ranking.positive_ranks_P),
            "top_ids": pa.ListArray.from_arrays(offsets, top_ids),
            "top_scores": pa.ListArray.from_arrays(offsets, pa.array(ranking.top_scores_QK.astype(np.float32).ravel())),
        }
    )

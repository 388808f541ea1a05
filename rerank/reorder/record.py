"""Sections of a report on reranking: `fusion` and `adaptive` on what was tuned on another split, `budget` on a time budget.

What holds on the split they are chosen on comes from the choice itself; what is measured, from the report's own rows (queries.parquet).
Shape letters: Q queries, I images, S resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.differences import Differences
from eval.metrics.evaluate import Figures
from eval.metrics.k_sweep import curves_over, recall_row
from eval.metrics.significance import resample_weights
from eval.report.render import show_interval
from eval.report.section import Section, SectionFormat
from eval.search.ranking import DIRECTIONS, Direction
from rerank import stage_names
from rerank.reorder.fusion import FusionChoice
from rerank.reorder.skipping import pair_trails, saving
from rerank.reorder.stages import TuningResult


def reranking_sections(
    figures: Figures, dataset: RetrievalSet, tuned: Sequence[TuningResult], budget: dict[str, float] | None
) -> list[Section]:
    """`fusion` and `adaptive`, each with an entry for every stage it was asked of, and `budget`; absent where they were not asked.

    Args:
        figures: of the split that is measured, `dataset`, with the tuned stages among its stages.
    """
    found = Differences(figures, dataset)
    fusion = [_fusion_record(found, each, each.fusion) for each in tuned if each.fusion is not None]
    adaptive = [_adaptive_record(found, each, each.margin) for each in tuned if each.margin is not None]
    return [Section(one, record) for one, record in ((FUSION, fusion), (ADAPTIVE, adaptive), (BUDGET, budget)) if record]


def _fusion_record(found: Differences, tuned: TuningResult, choice: FusionChoice) -> dict[str, Any]:
    """Weights and their recalls where the weight was chosen; weights 0, 1 and the chosen one where it is measured."""
    fusion, fused = choice.fusion, stage_names.fused(tuned.stage)
    stages = {tuned.stage: 0.0, stage_names.summed(tuned.stage): 1.0, fused: fusion.weight}
    return {
        "stage": tuned.stage,
        "fused": fused,
        "chosen_on": tuned.dataset.record(),
        "weight": fusion.weight,
        "units": {d: asdict(units) for d, units in fusion.units.items()},
        "weights": _weight_rows(tuned, choice),
        "measured": [
            {"stage": stage, "weight": weight, "R@1": found.recalls_at_1(stage)} | found.of_means(stage, tuned.stage)
            for stage, weight in stages.items()
        ],
    }


def _weight_rows(tuned: TuningResult, choice: FusionChoice) -> list[dict[str, Any]]:
    """Recalls by weight on the split the weight is chosen on, with the interval of R@1; weight null: the first stage alone."""
    dataset, weights_SI = tuned.dataset, resample_weights(tuned.dataset.num_images)
    image_Q = {"image_to_text": np.arange(dataset.num_images), "text_to_image": dataset.caption_image_C}
    alone = {d: tuned.first.rankings[d].best_ranks() for d in DIRECTIONS}
    by_weight: list[tuple[float | None, Mapping[Direction, np.ndarray]]] = [*choice.ranks.items(), (None, alone)]
    rows = []
    for weight, ranks in by_weight:
        for direction in DIRECTIONS:
            rows.append({"weight": weight, "direction": direction, **recall_row(ranks[direction], image_Q[direction], weights_SI)})
    return rows


def _adaptive_record(found: Differences, tuned: TuningResult, margin: float) -> dict[str, Any]:
    """The margin, what it saves and costs where it was chosen, and where it is measured."""
    stage = stage_names.adaptive(tuned.stage)
    difference = found.of_means(stage, tuned.stage)
    pairs, needed = (found.figures.stages[name]["cost"]["pairs_needed"] for name in (tuned.stage, stage))
    return {
        "stage": tuned.stage,
        "adaptive": stage,
        "chosen_on": tuned.dataset.record(),
        "max_loss": tuned.max_loss,
        "margin": margin if np.isfinite(margin) else None,
        "chosen": _saving(tuned, margin),
        "curve": _curve(tuned),
        "measured": {
            "pairs": pairs,
            "saved": pairs - needed,
            "share_saved": (pairs - needed) / pairs,
            "loss": 0.0 - difference["delta"],  # and not -0.0
            "ci95": [0.0 - end for end in reversed(difference["ci95"])],
        },
    }


def _curve(tuned: TuningResult) -> list[dict[str, Any]]:
    """What margins that save about 0, 10, ... 100% of the pairs cost where the margin was chosen."""
    trails_N = pair_trails([tuned.first.rankings[d] for d in DIRECTIONS], tuned.top_k)
    margins = dict.fromkeys([np.inf, *np.quantile(trails_N, 1 - np.linspace(0, 1, 11)[1:], method="lower").tolist()])
    return [{"margin": m if np.isfinite(m) else None} | _saving(tuned, m) for m in margins]


def _saving(tuned: TuningResult, margin: float) -> dict[str, Any]:
    return asdict(saving(tuned.first.rankings, tuned.scores, tuned.top_k, margin))


def fusion_line(record: dict[str, Any]) -> str:
    """One sentence on a fused stage."""
    fused = record["measured"][-1]
    return (
        f"{record['fused']}: weight {record['weight']:g} of the first stage, chosen on {split_in_words(record)}; against {record['stage']} "
        f"{100 * fused['delta']:+.2f} points of mean R@1 {show_interval(fused['ci95'])}"
    )


def adaptive_line(record: dict[str, Any]) -> str:
    """One sentence on an adaptive stage."""
    measured = record["measured"]
    where = "nothing may be skipped" if record["margin"] is None else f"what trails by {record['margin']:.4f} is skipped"
    return (
        f"{record['adaptive']}: {where}, chosen on {split_in_words(record)} for a loss of at most {100 * record['max_loss']:g} points; "
        f"{100 * measured['share_saved']:.1f}% of {measured['pairs']:,} pairs saved, mean R@1 {0.0 - 100 * measured['loss']:+.2f} points "
        f"{show_interval([0.0 - end for end in reversed(measured['ci95'])])}"
    )


def split_in_words(record: dict[str, Any]) -> str:
    """The split something was chosen on."""
    chosen_on = record["chosen_on"]
    return f"{chosen_on['split'] or 'all rows'} ({chosen_on['num_images']:,} images)"


def budget_note(record: dict[str, float]) -> list[str]:
    """One sentence on a time budget."""
    return [
        f"Time budget: {record['seconds']:g} s to rerank in; the first {record['top_k']} candidates of every query fit, "
        f"{record['num_pairs']:,} pairs with {record['num_images']:,} pictures, about {record['estimated_seconds']:.1f} s."
    ]


_TEMPLATES = Path(__file__).parent / "templates"
FUSION = SectionFormat(
    key="fusion",
    title="Score interpolation",
    chosen=lambda record: {each["fused"]: f"weight {each['weight']:g} chosen on {split_in_words(each)}" for each in record},
    template=_TEMPLATES / "fusion.html.j2",
    lines=lambda record, data: [fusion_line(each) for each in record],
    names={"curves_over": curves_over},
)
ADAPTIVE = SectionFormat(
    key="adaptive",
    title="Adaptive reranking (early exit)",
    template=_TEMPLATES / "adaptive.html.j2",
    lines=lambda record, data: [adaptive_line(each) for each in record],
    chosen=lambda record: {each["adaptive"]: f"margin chosen on {split_in_words(each)}" for each in record},
)
BUDGET = SectionFormat(key="budget", notes=budget_note)

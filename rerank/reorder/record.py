"""What report.json says of arms that were chosen on another split: `fusion` and `adaptive`.

What holds on the split they are chosen on comes from the choice itself; what is measured, from the report's own rows (queries.parquet).
Shape letters: Q queries, I images, S resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.differences import Differences
from eval.metrics.evaluate import Figures
from eval.metrics.metrics import RECALL_AT, recall_at_k
from eval.metrics.significance import ImageSums, interval, resample_weights
from eval.metrics.stage_metrics import RECALLS
from eval.search.ranking import DIRECTIONS, Direction
from rerank.reorder.skipping import Saving, pair_trails, saving
from rerank.reorder.tuned_stages import ADAPTIVE, FUSED, SUM, Chosen

_CURVE_SHARES = np.linspace(0, 1, 11)


def chosen_sections(figures: Figures, dataset: RetrievalSet, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Further sections of a report: `fusion` and `adaptive`, each with an entry for every stage it was asked of; absent where it was not.

    Args:
        figures: of the split that is measured, `dataset`, with the chosen arms among its stages.
    """
    found = Differences(figures, dataset)
    fusion = [_fusion_record(found, each) for each in chosen if each.fusion is not None]
    adaptive = [_adaptive_record(found, each) for each in chosen if each.margin is not None]
    return ({"fusion": fusion} if fusion else {}) | ({"adaptive": adaptive} if adaptive else {})


def chosen_on(dataset: RetrievalSet) -> dict[str, Any]:
    """How a report names the split something was chosen on."""
    return {
        "split": dataset.split,
        "num_images": dataset.num_images,
        "num_captions": dataset.num_captions,
        "sha256": dataset.sha256(),
        "truth": dataset.truth,
    }


def _fusion_record(found: Differences, chosen: Chosen) -> dict[str, Any]:
    """Weights and their recalls where the weight was chosen; weights 0, 1 and the chosen one where it is measured."""
    assert chosen.fusion is not None
    fusion = chosen.fusion.fusion
    stages = {chosen.twin: 0.0, f"{chosen.twin}+{SUM}": 1.0, f"{chosen.twin}+{FUSED}": fusion.weight}
    return {
        "stage": chosen.twin,
        "fused": f"{chosen.twin}+{FUSED}",
        "chosen_on": chosen_on(chosen.dataset),
        "weight": fusion.weight,
        "units": {d: {"pair": units.pair, "first": units.first} for d, units in fusion.units.items()},
        "weights": _weight_rows(chosen),
        "measured": [
            {"stage": stage, "weight": weight, "R@1": found.recalls_at_1(stage)} | found.of_means(stage, chosen.twin)
            for stage, weight in stages.items()
        ],
    }


def _weight_rows(chosen: Chosen) -> list[dict[str, Any]]:
    """Recalls by weight on the split the weight is chosen on, with the interval of R@1; weight null: the first stage alone."""
    assert chosen.fusion is not None
    dataset, weights_SI = chosen.dataset, resample_weights(chosen.dataset.num_images)
    image_Q = {"image_to_text": np.arange(dataset.num_images), "text_to_image": dataset.caption_image_C}
    alone = {d: chosen.first.rankings[d].best_ranks() for d in DIRECTIONS}
    by_weight: list[tuple[float | None, Mapping[Direction, np.ndarray]]] = [*chosen.fusion.ranks.items(), (None, alone)]
    rows = []
    for weight, ranks in by_weight:
        for direction in DIRECTIONS:
            found_QM = np.stack([recall_at_k(ranks[direction], k) for k in RECALL_AT], axis=1)
            sums = ImageSums.of(found_QM, image_Q[direction], dataset.num_images)
            bounds = interval(sums.resampled_means(weights_SI))[:, 0].tolist()
            recalls = dict(zip(RECALLS, sums.means().tolist(), strict=True))
            rows.append({"weight": weight, "direction": direction, **recalls, "ci95": bounds})
    return rows


def _adaptive_record(found: Differences, chosen: Chosen) -> dict[str, Any]:
    """The margin, what it saves and costs where it was chosen, and where it is measured."""
    assert chosen.margin is not None
    stage = f"{chosen.twin}+{ADAPTIVE}"
    difference = found.of_means(stage, chosen.twin)
    pairs, needed = (found.figures.stages[name]["cost"]["pairs_needed"] for name in (chosen.twin, stage))
    return {
        "stage": chosen.twin,
        "adaptive": stage,
        "chosen_on": chosen_on(chosen.dataset),
        "max_loss": chosen.max_loss,
        "margin": chosen.margin if np.isfinite(chosen.margin) else None,
        "chosen": _saving_record(saving(chosen.first.rankings, chosen.scores, chosen.top_k, chosen.margin)),
        "curve": _curve(chosen),
        "measured": {
            "pairs": pairs,
            "saved": pairs - needed,
            "share_saved": (pairs - needed) / pairs,
            "loss": 0.0 - difference["delta"],  # and not -0.0
            "ci95": [0.0 - end for end in reversed(difference["ci95"])],
        },
    }


def _curve(chosen: Chosen) -> list[dict[str, Any]]:
    """What margins that save about 0, 10, ... 100% of the pairs cost where the margin was chosen."""
    trails_N = pair_trails([chosen.first.rankings[d] for d in DIRECTIONS], chosen.top_k)
    margins = dict.fromkeys(float(margin) for margin in np.quantile(trails_N, 1 - _CURVE_SHARES[1:], method="lower"))
    rows = [{"margin": None} | _saving_record(saving(chosen.first.rankings, chosen.scores, chosen.top_k, float("inf")))]
    return rows + [{"margin": m} | _saving_record(saving(chosen.first.rankings, chosen.scores, chosen.top_k, m)) for m in margins]


def _saving_record(saved: Saving) -> dict[str, Any]:
    return {"pairs": saved.pairs, "saved": saved.saved, "share_saved": saved.share, "lost": saved.lost, "loss": saved.loss}

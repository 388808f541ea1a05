"""The mining report as one HTML file: its figures, histograms, and twenty of the mined pairs with their images.

Shape letters: N rows of the table, E examples.
"""

import json
from collections.abc import Mapping
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import numpy as np

from eval.atomic import replace_files
from eval.dataset.images import ImageError
from eval.report.gallery import shortened, thumbnail
from eval.report.render import render
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.data.order import generator
from train.mining.report import MATCH, RULES, Histogram, MiningReport, is_true, marked_false

NUM_EXAMPLES = 20
SAMPLE_COLUMNS = ("image", "its own", "mined", "rank", "score", "margin")
NUM_RELABELLED = 5
_STREAM = 0x70616765  # of random numbers
_MOST_CAPTIONS = 3
_SIDES = {"positive": "Score of the best positive", "negative": "Scores of the mined negatives", "margin": "Margin between them"}
_PLOT = 100
"""Width and height of a histogram in units of its own."""
_LEAST = 4
"""Height of a mark, so that one false negative among thousands is seen."""


def write_mining_report(
    folder: Path,
    report: MiningReport,
    negatives: Negatives,
    pool: CaptionPool,
    truth: set[tuple[str, str]] | None = None,
    *,
    step: int | None = None,
) -> Path:
    """Write HASH.json and HASH.html into a folder, both or neither. Returns the path of the page.

    Args:
        step: after which they were mined; None: in no run, or before its first.

    Raises:
        OSError: they cannot be written.
    """
    record = json.dumps(report.as_record(), indent=1) + "\n"
    target = folder / f"{report.name}.html"
    text = page(report, negatives, pool, truth, step=step)
    folder.mkdir(parents=True, exist_ok=True)
    replace_files({target.with_suffix(".json"): record, target: text})
    return target


def page(
    report: MiningReport, negatives: Negatives, pool: CaptionPool, truth: set[tuple[str, str]] | None = None, *, step: int | None = None
) -> str:
    """The HTML page of a report; every caption and id in it is escaped. Arguments as of `write_mining_report`."""
    rows = dict(zip(("Hardest", "At random"), example_rows(negatives), strict=True))
    true_N = None if truth is None else is_true(pool, negatives.image_N, negatives.captions_N, truth)
    false_N = marked_false(true_N, negatives.match_N)
    if not negatives.is_negative_N.all():
        rows["Relabelled as positives"] = np.flatnonzero(~negatives.is_negative_N)[:NUM_RELABELLED]
    return render(
        "report_page.html.j2",
        Path(__file__).parent,
        report=report,
        source=pool.dataset.source,
        split=pool.dataset.split,
        step=step,
        match=MATCH,
        rules=[(RULES[rule], rule, count) for rule, count in report.filtered_out.items() if count],
        idle_rules=[RULES[rule] for rule, count in report.filtered_out.items() if not count],
        num_false=None if false_N is None else int((false_N & negatives.is_negative_N).sum()),
        plots=_plots(report.histograms),
        groups={title: [_example(negatives, row, pool, true_N) for row in rows_E.tolist()] for title, rows_E in rows.items()},
    )


def _plots(histograms: Mapping[str, Histogram]) -> list[dict[str, Any]]:
    """Histograms as rectangles in a square of _PLOT, their heights a share of the highest bin's; ticks are (place, words) below them."""
    plots = []
    for side, found in histograms.items():
        low, high = found.edges[0], found.edges[-1]
        width, most = _PLOT / len(found.counts), max(found.counts)
        false = found.false_negatives or [0] * len(found.counts)
        bars = [
            {"x": round(width * place, 3), "width": round(0.9 * width, 3), "height": round(_PLOT * count / most, 2)}
            | {"false": round(max(_PLOT * marked / most, _LEAST), 2), "count": count, "marked": marked}
            | {"from": found.edges[place], "to": found.edges[place + 1]}
            for place, (count, marked) in enumerate(zip(found.counts, false, strict=True))
            if count
        ]
        step = _tick_step(high - low)
        ticks = [step * number for number in range(ceil(low / step), floor(high / step) + 1)]
        plots.append(
            {"side": side, "title": _SIDES[side], "bars": bars, "num_marked": sum(false), "most": most}
            | {"ticks": [(round(_PLOT * (tick - low) / (high - low), 2), f"{tick:g}") for tick in ticks]}
        )
    return plots


def _tick_step(span: float) -> float:
    """Distance of the ticks of an axis, 1, 2 or 5 times a power of ten, so that there are about five."""
    power = 10.0 ** floor(log10(span / 4))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= span / 6)


def example_rows(negatives: Negatives) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the highest scores, other rows at random) among the negatives, int64; each at most half of NUM_EXAMPLES.

    The random generator is seeded by the table's name.
    """
    half = NUM_EXAMPLES // 2
    rows_n = np.flatnonzero(negatives.is_negative_N)
    order_N = rows_n[np.argsort(-negatives.scores_N[rows_n], kind="stable")]
    hardest_E, others = order_N[:half], np.sort(order_N[half:])
    draws = generator(int(negatives.name, 16), _STREAM)
    return hardest_E, np.sort(draws.choice(others, min(half, len(others)), replace=False))


def sample_rows(negatives: Negatives, pool: CaptionPool) -> list[list[Any]]:
    """The hardest of the examples as rows of a table (SAMPLE_COLUMNS), without pictures."""
    rows_E, _ = example_rows(negatives)
    images_E = np.searchsorted(negatives.offsets, rows_E, side="right") - 1
    return [
        [
            pool.dataset.image_ids[image],
            shortened(pool.dataset.captions[int(pool.dataset.caption_offsets[image])]),
            shortened(pool.text(int(negatives.captions_N[row]))),
            int(negatives.ranks_N[row]),
            float(negatives.scores_N[row]),
            float(negatives.margins_N[row]),
        ]
        for image, row in zip(images_E.tolist(), rows_E.tolist(), strict=True)
    ]


def _example(negatives: Negatives, row: int, pool: CaptionPool, true_N: np.ndarray | None) -> dict[str, Any]:
    """What the page shows of one row; `picture` is a data: URI, "" where the image does not decode."""
    image, caption = int(np.searchsorted(negatives.offsets, row, side="right") - 1), int(negatives.captions_N[row])
    dataset = pool.dataset
    first = int(dataset.caption_offsets[image])
    own = dataset.captions[first : min(first + _MOST_CAPTIONS, int(dataset.caption_offsets[image + 1]))]
    try:
        picture = thumbnail(dataset.load_image(image))
    except ImageError:  # a missing image must not fail the report of a finished mining
        picture = ""
    return {
        "image_id": dataset.image_ids[image],
        "picture": picture,
        "true_captions": [shortened(text) for text in own],
        "caption": shortened(pool.text(caption)),
        "caption_id": pool.caption_id(caption),
        "rank": int(negatives.ranks_N[row]),
        "score": float(negatives.scores_N[row]),
        "margin": float(negatives.margins_N[row]),
        "match": None if negatives.match_N is None else float(negatives.match_N[row]),
        "is_relabelled": negatives.relabelled_N is not None and bool(negatives.relabelled_N[row]),
        "is_true": None if true_N is None else bool(true_N[row]),
    }

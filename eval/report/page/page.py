"""report.html: the answer first, then a table of the stages, the training curves, queries that changed, and all figures, folded."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from eval.dataset.truth import truth_in_words
from eval.manifest.skipped import FILE, skipped_in_words
from eval.metrics.evaluate import Figures
from eval.metrics.k_sweep import curves
from eval.metrics.outcomes import BINS
from eval.metrics.slices import MARGIN
from eval.metrics.stage_metrics import METRICS, StageMetrics
from eval.report.files import report_files
from eval.report.gallery import Gallery
from eval.report.page.about import About
from eval.report.page.overview import MARKS, Overview, overview
from eval.report.render import TEMPLATES, relative_link, render
from eval.report.section import Section
from eval.search.ranking import DIRECTIONS

_FEW_IMAGES = 100
"""Below it a report says how large a difference has to be."""
_FEW_QUERIES = 20
"""Of a slice, too few to name it as the weakest."""
_CURVE_COLOURS = 48
SCRIPT = (TEMPLATES / "report.js").read_text(encoding="utf-8")
SCRIPT_SHA256 = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
"""Of the one script that the page lets run."""


@dataclass(frozen=True)
class Fold:
    """A folded part of the page: `id` is its anchor, `title` its heading and its name in the contents."""

    id: str
    title: str
    html: Markup


def report_page(folder: Path, figures: Figures, sections: Sequence[Section], gallery: Gallery, about: About) -> str:
    """The HTML of a report that is written to a folder."""
    page = report_files(folder)[2]
    chosen = {stage: words for one in (*(section.chosen for section in sections), about.chosen) for stage, words in one.items()}
    first = overview(figures, about, chosen)
    warnings = [*about.warnings, *(one for section in sections for one in section.warnings)]
    warnings += [*skipped_notes(figures.data), *few_images_lines(figures.data["num_images"], figures.comparisons)]
    return render(
        "report.html.j2",
        about=about,
        data=figures.data,
        truth=truth_in_words(figures.data.get("truth", {})),
        first=first,
        marks=MARKS,
        warnings=warnings,
        notes=[note for section in sections for note in section.notes],
        curves=_drawn(about.curves),
        curves_link=relative_link(about.curves.with_suffix(".svg"), page) if about.curves is not None else "",
        steps=(steps := _steps(figures.outcomes, gallery, about, first)),
        weakest=weakest_slice(figures.slices, steps[0]["stage"]) if steps else None,
        gallery=gallery,
        folds=[*_own_folds(figures, first), *_section_folds(sections), *_figure_folds(figures, chosen)],
        links=_links(folder, page, about),
        script=Markup(SCRIPT),
        script_sha256=SCRIPT_SHA256,
    )


def weakest_slice(slices: Sequence[Mapping[str, Any]], stage: str) -> Mapping[str, Any] | None:
    """The row of `slices` with the lowest R@1 of a stage, of those with enough queries to say so; None: there is none.

    Slices by the margin of scores are left out: they say that the model is unsure, not of what.

    >>> bins = ("a", 3, 0.0), ("b", 40, 0.2), ("c", 50, 0.4)
    >>> rows = [{"stage": "tuned", "by": "words", "bin": bin, "num_queries": count, "R@1": r} for bin, count, r in bins]
    >>> weakest_slice(rows, "tuned")["bin"], weakest_slice(rows, "base")
    ('b', None)
    """
    own = [row for row in slices if row["stage"] == stage and row["num_queries"] >= _FEW_QUERIES and row["by"] != MARGIN]
    return min(own, key=lambda row: row["R@1"], default=None)


def skipped_notes(data: Mapping[str, Any]) -> list[str]:
    """A sentence on the rows of the data that were left out as asked, if there are any."""
    return [f"{skipped_in_words(data['skipped'])}. They are listed in {FILE}."] if "skipped" in data else []


def few_images_lines(num_images: int, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on the differences that so few images can tell: half of the widest interval of a recall, and at least one image of them.

    >>> few_images_lines(15, [{"metric": "R@1", "direction": "both", "ci95": [-0.1, 0.2]}])
    ['With only 15 images, differences of recall under about 15 points cannot be told from chance: measure on more.']
    >>> few_images_lines(1000, [{"metric": "R@1", "direction": "both", "ci95": [-0.1, 0.2]}])
    []
    """
    halves = [(row["ci95"][1] - row["ci95"][0]) / 2 for row in comparisons if row["metric"].startswith("R@") and row["direction"] == "both"]
    if num_images >= _FEW_IMAGES or not halves:
        return []
    points = 100 * max(*halves, 1 / num_images)
    told = f"differences of recall under about {points:.0f} points cannot be told from chance: measure on more."
    return [f"With only {num_images} images, {told}"]


def _drawn(path: Path | None) -> str:
    """The training curves as a data: URI of few colours; empty where they were not drawn."""
    if path is None or not path.is_file():
        return ""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.convert("RGB").quantize(_CURVE_COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    except (OSError, ValueError, SyntaxError):  # damaged since: the figures do not depend on it
        return ""
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _steps(outcomes: Sequence[Mapping[str, Any]], gallery: Gallery, about: About, first: Overview) -> list[dict[str, Any]]:
    """The steps that queries are shown of: name, stages, counts of the bins over both directions, and the queries, bins taking turns."""
    found = []
    for stage, against in dict.fromkeys((one.failure["stage"], one.failure["against"]) for one in gallery.queries):
        rows = [row for row in outcomes if (row["stage"], row["against"]) == (stage, against)]
        counts = {bin: sum(row["counts"].get(bin, 0) for row in rows) for bin in BINS if any(bin in row["counts"] for row in rows)}
        own = [one for one in gallery.queries if (one.failure["stage"], one.failure["against"]) == (stage, against)]
        seen: dict[tuple[str, str], int] = {}
        turns = []
        for one in own:
            key = one.failure["bin"], one.failure["direction"]
            seen[key] = seen.get(key, 0) + 1
            turns.append(seen[key])
        order = sorted(range(len(own)), key=turns.__getitem__)
        word = about.words.get((stage, against)) or ("Reranking" if first.first_of.get(stage) == against else "")
        found.append({"word": word, "stage": stage, "against": against, "counts": counts, "queries": [own[place] for place in order]})
    return found


def _own_folds(figures: Figures, first: Overview) -> list[Fold]:
    """What a report always has, where there is any of it: bins, slices, curves over K."""
    folds = []
    if figures.outcomes:
        part = _part("report_outcomes", "outcomes", outcomes=figures.outcomes, bins=BINS)
        folds.append(Fold("outcomes-of-steps", "Gains and losses", part))
    if figures.slices:
        folds.append(Fold("slices", "Slices", _part("report_outcomes", "slices", slices=_sliced(figures.slices))))
    if swept := _swept(figures, first):
        folds.append(Fold("candidates", "Number of candidates", _part("report_outcomes", "k_sweeps", stages=swept)))
    return folds


def _section_folds(sections: Sequence[Section]) -> list[Fold]:
    parts = [(section, section.html()) for section in sections]
    return [Fold(f"section-{section.format.key}", section.format.title or section.format.key, html) for section, html in parts if html]


def _figure_folds(figures: Figures, chosen: Mapping[str, str]) -> list[Fold]:
    """Cost, every metric, every comparison."""
    folds = [
        Fold("costs", "Cost", _part("report_figures", "costs", stages=figures.stages)),
        Fold("metrics", "All metrics", _part("report_figures", "metrics_table", stages=figures.stages, metrics=METRICS, chosen=chosen)),
    ]
    if figures.comparisons:
        part = _part("report_figures", "comparisons_table", comparisons=figures.comparisons, marks=MARKS)
        folds.append(Fold("all-comparisons", "All comparisons", part))
    return folds


def _part(template: str, macro: str, **values: Any) -> Markup:
    return Markup(render(f"{template}.html.j2", part=macro, **values).strip())


def _sliced(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]]:
    """Rows of `slices` by what slices, direction and bin, in their order."""
    found: dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]] = {}
    for row in rows:
        found.setdefault(row["by"], {}).setdefault(row["direction"], {}).setdefault(row["bin"], []).append(row)
    return found


def _swept(figures: Figures, first: Overview) -> dict[str, dict[str, Any]]:
    """Of each reranked stage its record, and its curve over K with the ceiling, on the same axis as the others."""
    swept = {stage: record for stage, record in figures.stages.items() if record.get("k_sweep")}
    ceilings = {stage: _ceiling(figures, first.first_of[stage], record) for stage, record in swept.items() if stage in first.first_of}
    shares = [end for record in swept.values() for row in record["k_sweep"] for end in row["ci95"]]
    shares += [share for lines in ceilings.values() for line in lines.values() for _, share in line]
    bounds = (min(shares), max(shares)) if shares else None
    return {
        stage: {"record": record, "drawn": curves(record["k_sweep"], record.get("r1_by_k"), bounds=bounds, ceiling=ceilings.get(stage))}
        for stage, record in swept.items()
    }


def _ceiling(figures: Figures, first_stage: str, record: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """R@K of the first stage at each K of a sweep, by direction: no reranker of K candidates can pass it."""
    images = {name: number for number, name in enumerate(figures.queries["image_id"].unique().to_pylist())}
    sizes = sorted({row["k"] for row in record["k_sweep"]})
    ranks = {direction: StageMetrics.of(figures.queries, first_stage, direction, images).ranks_Q for direction in DIRECTIONS}
    return {direction: [[k, float((ranks_Q <= k).mean())] for k in sizes] for direction, ranks_Q in ranks.items()}


def _links(folder: Path, page: Path, about: About) -> list[tuple[str, str]]:
    """(words, URL) of what belongs to the report: its own files, which are written with it, and what of the rest is there."""
    json_path, parquet_path, _ = report_files(folder)
    own = [("every figure, report.json", json_path), ("every query, queries.parquet", parquet_path)]
    return [(words, relative_link(path, page)) for words, path in [*own, *(link for link in about.links if link[1].exists())]]

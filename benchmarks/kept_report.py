"""What of a report, or of a study, is kept under results/, and the tables made of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.metrics.comparison import compare
from eval.metrics.evaluate import Figures
from eval.metrics.significance import resample_weights
from eval.metrics.stage_metrics import StageMetrics
from eval.report.report import report_record
from eval.search.ranking import DIRECTIONS
from train.study.runs import Planned, Result

WAYS = {"image_to_text": "image to text", "text_to_image": "text to image", "both": "both"}
_UNSEEN_COLUMNS = ("top_ids", "top_scores")
_UNSEEN_SECTIONS = ("failures", "slices", "outcomes")


def keep_figures(figures: Figures, folder: Path) -> None:
    """Write a report's rows and record to a folder of results/, without pictures' names, failures, slices and bins."""
    keep_report(report_record(figures), figures.queries, folder)


def keep_report(record: dict[str, Any], queries: pa.Table, folder: Path) -> None:
    """The same from a written report's record and rows."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in record.items() if key not in _UNSEEN_SECTIONS}
    pq.write_table(queries.drop_columns([name for name in _UNSEEN_COLUMNS if name in queries.column_names]), folder / "queries.parquet")
    (folder / "report.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def read_kept(folder: Path) -> tuple[dict[str, Any], pa.Table]:
    """(record, rows) of a kept report."""
    record: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return record, pq.read_table(folder / "queries.parquet")


def read_kept_study(folder: Path) -> dict[str, list[Result]]:
    """The runs of each system of a study before `./launch.sh study`, by seed, with their rows alone."""
    queries = pq.read_table(folder / "queries.parquet")
    found: dict[str, list[Result]] = {}
    for row in queries.select(["arm", "seed"]).group_by(["arm", "seed"], use_threads=False).aggregate([]).to_pylist():
        rows = queries.filter(pc.and_(pc.equal(queries["arm"], row["arm"]), pc.equal(queries["seed"], row["seed"])))
        planned = Planned(system=row["arm"], seed=row["seed"], overrides=(), folder=folder)
        found.setdefault(row["arm"], []).append(Result(planned=planned, batch_size=1, queries=rows, lines=[], report={}))
    return found


def ranks_of(queries: pa.Table, stage: str, direction: str) -> np.ndarray:
    """Rank of the best relevant item of every query of a stage, int64.

    Raises:
        ValueError: there is no such row.
    """
    rows = queries.filter(pc.and_(pc.equal(queries["stage"], stage), pc.equal(queries["direction"], direction)))
    if not len(rows):
        raise ValueError(f"no row of stage {stage!r}, {direction}; stages: {pc.unique(queries['stage']).to_pylist()}")
    ranks: np.ndarray = rows["rank"].to_numpy()
    return ranks


def mean_recall(queries: pa.Table, stage: str, k: int = 1) -> float:
    """R@k of a stage, mean of both directions."""
    return float(np.mean([np.mean(ranks_of(queries, stage, direction) <= k) for direction in ("image_to_text", "text_to_image")]))


def recall_lines(queries: pa.Table, stages: Sequence[str]) -> list[str]:
    """R@1, 5 and 10 of both directions and the mean R@1 of each stage, in percent."""
    lines = ["| stage | image to text R@1 | R@5 | R@10 | text to image R@1 | R@5 | R@10 | mean R@1 |", "|---|---|---|---|---|---|---|---|"]
    for stage in stages:
        cells = [
            f"{100 * np.mean(ranks_of(queries, stage, way) <= k):.1f}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
        ]
        lines.append("| " + " | ".join([stage, *cells, f"{100 * mean_recall(queries, stage):.1f}"]) + " |")
    return lines


def comparison_lines(
    comparisons: Sequence[dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
    ways: Sequence[str] = ("both",),
    metrics: Sequence[str] = ("R@1",),
) -> list[str]:
    """Differences of pairs of stages in points, with their intervals and verdicts; the rows of report.json, chosen.

    Raises:
        ValueError: a pair was not compared.
    """
    lines = ["| difference, points | direction | metric | | paired 95% interval | verdict |", "|---|---|---|---|---|---|"]
    for stage, against in pairs:
        for way in ways:
            for metric in metrics:
                row = comparison(comparisons, stage, against, way, metric)
                cells = [f"{stage} against {against}", WAYS[way], metric, f"{100 * row['delta']:+.1f}", points(row["ci95"]), row["verdict"]]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def comparison(comparisons: Sequence[dict[str, Any]], stage: str, against: str, way: str = "both", metric: str = "R@1") -> dict[str, Any]:
    """One row of report.json's comparisons.

    Raises:
        ValueError: it is not there.
    """
    for row in comparisons:
        if (row["stage"], row["against"], row["direction"], row["metric"]) == (stage, against, way, metric):
            return row
    raise ValueError(
        f"{stage} against {against}, {way}, {metric}: not compared; found {sorted({(r['stage'], r['against']) for r in comparisons})}"
    )


def points(ends: Sequence[float]) -> str:
    """An interval in points."""
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"


def comparisons_of(queries: pa.Table, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows as report.json's comparisons, of any pairs of stages among the rows of queries.parquet; corrected within each pair."""
    images = {name: number for number, name in enumerate(dict.fromkeys(queries["image_id"].to_pylist()))}
    stages = dict.fromkeys(stage for pair in pairs for stage in pair)
    measured = {(stage, way): StageMetrics.of(queries, stage, way, images) for stage in stages for way in DIRECTIONS}
    return compare(measured, pairs, resample_weights(len(images)))

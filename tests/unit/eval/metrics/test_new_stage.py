"""A new stage, the mean of two models' scores, defined in this file alone: evaluation needs no change for it (docs/extending.md)."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import Figures, evaluate
from eval.metrics.metrics import retrieval_metrics
from eval.report.gallery import gallery
from eval.report.report import write_report
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from eval.search.stage import Stage
from tests.unit.eval.reranked_set import picture_set

DEPTH = 8


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scores_of(dataset: RetrievalSet, seed: int) -> np.ndarray:
    """Cosines of one noisy model, float64 (images, captions); each model errs in its own way."""
    place = np.random.default_rng(0).normal(size=(dataset.num_images, 6))
    own = np.random.default_rng(seed)
    images = unit(place + 0.7 * own.normal(size=place.shape))
    return images @ unit(place[dataset.caption_image_C] + 0.7 * own.normal(size=(dataset.num_captions, 6))).T


def ranked(dataset: RetrievalSet, scores: np.ndarray, direction: Direction) -> Ranking:
    """A ranking by whole sorted rows of a score matrix, equal scores by index."""
    rows = scores if direction == "image_to_text" else scores.T
    order = np.argsort(-rows, axis=1, kind="stable")
    places = np.argsort(order, axis=1) + 1
    positives = dataset.positives(direction)
    ranks = places[positives.query_P, positives.indices_P]
    head = order[:, :DEPTH]
    return Ranking(direction, head, np.take_along_axis(rows, head, 1), positives.offsets, positives.indices_P, ranks)


def stage_of(dataset: RetrievalSet, name: str, scores: np.ndarray) -> Stage:
    return Stage(name, {direction: ranked(dataset, scores, direction) for direction in DIRECTIONS}, {"seconds": 0.0})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalSet:
    return picture_set(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def matrices(dataset: RetrievalSet) -> dict[str, np.ndarray]:
    one, other = scores_of(dataset, 1), scores_of(dataset, 2)
    return {"one": one, "other": other, "ensemble": (one + other) / 2}


@pytest.fixture(scope="module")
def figures(dataset: RetrievalSet, matrices: dict[str, np.ndarray]) -> Figures:
    stages = [stage_of(dataset, name, scores) for name, scores in matrices.items()]
    return evaluate(dataset, stages, [("ensemble", "one"), ("ensemble", "other")])


def best_ranks(dataset: RetrievalSet, scores: np.ndarray, direction: Direction) -> list[int]:
    """Rank of the best positive by counting: the items above it, and equal ones before it."""
    rows = scores if direction == "image_to_text" else scores.T
    found = []
    for query, row in enumerate(rows):
        relevant = dataset.positives(direction).of(query)
        found.append(min(1 + int((row > row[item]).sum()) + int((row[:item] == row[item]).sum()) for item in relevant))
    return found


def test_its_rows_and_means_are_those_of_its_scores(figures: Figures, dataset: RetrievalSet, matrices: dict[str, np.ndarray]) -> None:
    rows = figures.queries.to_pylist()
    for direction in DIRECTIONS:
        ranks = best_ranks(dataset, matrices["ensemble"], direction)
        own = [row for row in rows if (row["stage"], row["direction"]) == ("ensemble", direction)]
        assert [row["rank"] for row in own] == ranks and all(len(row["top_ids"]) == DEPTH for row in own)
        scores = matrices["ensemble"] if direction == "image_to_text" else matrices["ensemble"].T
        positives, relevant = dataset.positives(direction), np.zeros(scores.shape, dtype=bool)
        relevant[positives.query_P, positives.indices_P] = True
        for metric, value in retrieval_metrics(scores, relevant).items():
            assert figures.stages["ensemble"][direction][metric] == pytest.approx(value, abs=1e-12), metric


def test_it_is_compared_and_falls_in_bins(figures: Figures, dataset: RetrievalSet, matrices: dict[str, np.ndarray]) -> None:
    assert {(row["stage"], row["against"]) for row in figures.comparisons} == {("ensemble", "one"), ("ensemble", "other")}
    for row in figures.outcomes:
        before, after = (np.array(best_ranks(dataset, matrices[name], row["direction"])) for name in (row["against"], row["stage"]))
        right, was = after == 1, before == 1
        expected = {"right in both": right & was, "fixed": right & ~was, "broken": ~right & was, "wrong in both": ~right & ~was}
        assert row["stage"] == "ensemble" and row["counts"] == {name: int(chosen.sum()) for name, chosen in expected.items()}
        compared = next(
            c for c in figures.comparisons if (c["against"], c["direction"], c["metric"]) == (row["against"], row["direction"], "R@1")
        )
        assert (compared["wins"], compared["losses"]) == (row["counts"]["fixed"], row["counts"]["broken"])


def test_it_is_sliced_by_its_own_margin(figures: Figures, dataset: RetrievalSet, matrices: dict[str, np.ndarray]) -> None:
    kinds = {(row["by"], row["direction"]) for row in figures.slices if row["stage"] == "one"}
    assert {(row["by"], row["direction"]) for row in figures.slices if row["stage"] == "ensemble"} == kinds
    ordered = np.sort(matrices["ensemble"], axis=1)
    margins, right = ordered[:, -1] - ordered[:, -2], np.array(best_ranks(dataset, matrices["ensemble"], "image_to_text")) == 1
    edges = np.quantile(margins, [0.25, 0.5, 0.75])
    shown = [
        row for row in figures.slices if (row["stage"], row["direction"], row["by"]) == ("ensemble", "image_to_text", "first-stage margin")
    ]
    bins = np.searchsorted(edges, margins)
    assert [row["num_queries"] for row in shown] == np.bincount(bins).tolist()
    assert [row["R@1"] for row in shown] == pytest.approx([right[bins == number].mean() for number in range(4)])


def test_it_is_in_the_report_and_its_gallery(figures: Figures, dataset: RetrievalSet, tmp_path: Path) -> None:
    shown = gallery(dataset, figures)
    assert shown.queries and {(one.failure["stage"], one.failure["against"]) for one in shown.queries} == {("ensemble", "one")}
    folder = write_report(tmp_path / "report", figures, gallery=shown)
    assert list(json.loads((folder / "report.json").read_text())["stages"]) == ["one", "other", "ensemble"]
    assert (folder / "report.html").read_text().count("ensemble") > 10
    assert set(pq.read_table(folder / "queries.parquet")["stage"].to_pylist()) == {"one", "other", "ensemble"}


def test_it_can_re_order_another_without_saying_how_few_candidates_would_do(
    dataset: RetrievalSet, matrices: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The first three of each query in the ensemble's order: bins, ceiling and report, but no K sweep."""
    first = stage_of(dataset, "one", matrices["one"])
    second = Stage("one+mean", {d: reranked_by(first.rankings[d], matrices["ensemble"], 3) for d in DIRECTIONS}, {}, "one", 3)
    figures = evaluate(dataset, [first, second])
    assert figures.stages["one+mean"]["k_sweep"] == [] and set(figures.stages["one+mean"]["ceiling"]) == set(DIRECTIONS)
    assert all("missing" in row["counts"] for row in figures.outcomes)
    write_report(tmp_path / "report", figures, gallery=gallery(dataset, figures))


def reranked_by(first: Ranking, scores: np.ndarray, top_k: int) -> Ranking:
    """The first `top_k` of each query in the order of other scores, the rest as it was."""
    rows = scores if first.direction == "image_to_text" else scores.T
    head = first.top_indices_QK[:, :top_k]
    order = np.argsort(-np.take_along_axis(rows, head, 1), axis=1, kind="stable")
    indices = np.concatenate([np.take_along_axis(head, order, 1), first.top_indices_QK[:, top_k:]], axis=1)
    ranks = first.positive_ranks_P.copy()
    query = np.repeat(np.arange(first.num_queries), np.diff(first.positive_offsets))
    for place in np.flatnonzero(ranks <= DEPTH):
        ranks[place] = 1 + int(np.flatnonzero(indices[query[place]] == first.positive_indices_P[place])[0])
    return Ranking(first.direction, indices, first.top_scores_QK, first.positive_offsets, first.positive_indices_P, ranks)

"""The TREC files, read back by ir-measures, give the figures of the report, ties and re-ordered heads included."""

from dataclasses import replace
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, Rprec, Success

from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from eval.metrics.evaluate import evaluate
from eval.metrics.metrics import RECALL_AT
from eval.report.trec import falling_scores, trec_section, write_trec
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from eval.search.stage import Stage
from rerank.reorder.reorder import reordered
from tests.unit.eval.one_direction import search

NUM_IMAGES, NUM_CAPTIONS = 16, 48


@pytest.fixture(scope="module")
def data() -> RetrievalSet:
    texts = [f"caption {n % 17}" for n in range(NUM_CAPTIONS)]  # some are said of several images
    images = [
        ManifestImage(f"a photo {n:02d}.jpg", None, Path("x"), None, 1, None, texts[3 * n : 3 * n + 3], "") for n in range(NUM_IMAGES)
    ]
    return RetrievalSet(images, None, source="hand", split=None)


def rankings(data: RetrievalSet, images: np.ndarray, captions: np.ndarray, depth: int) -> dict[Direction, Ranking]:
    return {
        "image_to_text": search("image_to_text", images, captions, data.positives("image_to_text"), depth),
        "text_to_image": search("text_to_image", captions, images, data.positives("text_to_image"), depth),
    }


def average_precision(ranking: Ranking) -> float:
    """Mean over queries of (1 / R) * sum over the R relevant items of j / r_j, from the report's exact ranks."""
    parts = np.split(ranking.positive_ranks_P, ranking.positive_offsets[1:-1])
    return float(np.mean([np.mean((np.arange(len(ranks)) + 1) / np.sort(ranks)) for ranks in parts]))


def agree(folder: Path, stage: Stage, data: RetrievalSet) -> None:
    """What ir-measures makes of the files is what the report says."""
    figures = evaluate(data, [stage])
    for direction in DIRECTIONS:
        qrels = list(ir_measures.read_trec_qrels(str(folder / f"{direction}.qrels")))
        run = list(ir_measures.read_trec_run(str(folder / f"{stage.name}.{direction}.run")))
        theirs = ir_measures.calc_aggregate([AP, RR, Rprec, *(Success @ k for k in RECALL_AT)], qrels, run)
        ours = figures.stages[stage.name][direction]
        assert ours["MRR"] == pytest.approx(theirs[RR], abs=1e-12)
        assert ours["R-Precision"] == pytest.approx(theirs[Rprec], abs=1e-12)
        assert average_precision(stage.rankings[direction]) == pytest.approx(theirs[AP], abs=1e-12)
        for k in RECALL_AT:
            assert ours[f"R@{k}"] == pytest.approx(theirs[Success @ k], abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_ir_measures_finds_the_figures_of_the_report(data: RetrievalSet, tmp_path: Path, seed: int) -> None:
    """Coarse vectors tie often, and seed 0 ties everywhere; half of the runs have a re-ordered head of larger or smaller scores."""
    draws = np.random.default_rng(seed)
    vectors = draws.integers(-1, 2, (NUM_IMAGES + NUM_CAPTIONS, 3)).astype(np.float32) / 4 * bool(seed)
    found = rankings(data, *np.split(vectors, [NUM_IMAGES]), NUM_CAPTIONS)
    if seed % 2:
        heads = {direction: draws.integers(-2, 3, (one.num_queries, 5)) * 3.0 + seed % 4 - 2 for direction, one in found.items()}
        found = {direction: reordered(one, heads[direction]) for direction, one in found.items()}
    stage = Stage("tuned+blip", found)
    write_trec(tmp_path, [stage], data)
    agree(tmp_path, stage, data)
    assert (tmp_path / "image_to_text.qrels").read_text().startswith("a%20photo%2000.jpg 0 a%20photo%2000.jpg#0 1\n")


def test_scores_are_the_models_own_and_the_depth_is_stated(data: RetrievalSet, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(NUM_IMAGES + NUM_CAPTIONS, 8))
    found = rankings(data, *np.split(np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)), [NUM_IMAGES]), 20)
    write_trec(tmp_path, [Stage("model", found)], data)
    for direction, items in (("image_to_text", 20), ("text_to_image", NUM_IMAGES)):
        run = list(ir_measures.read_trec_run(str(tmp_path / f"model.{direction}.run")))
        scores = np.float32([one.score for one in run]).reshape(-1, items)
        assert scores.tobytes() == found[direction].top_scores_QK.tobytes()
    section = trec_section([Stage("model", found)], data)
    assert section.record["directions"]["image_to_text"] == {"depth": 20, "gallery": NUM_CAPTIONS}
    assert section.format.lines(section.record, {}) == ["TREC runs: depth image to text 20 of 48, text to image 16 of 16"]


def test_a_stage_cut_for_its_report_measures_the_same(data: RetrievalSet) -> None:
    vectors = np.random.default_rng(1).normal(size=(NUM_IMAGES + NUM_CAPTIONS, 8)).astype(np.float32)
    deep, short = (Stage("model", rankings(data, *np.split(vectors, [NUM_IMAGES]), depth)) for depth in (NUM_CAPTIONS, 10))
    assert evaluate(data, [deep.cut(10)]).queries.equals(evaluate(data, [short]).queries)


@pytest.mark.parametrize("seed", range(50))
def test_scores_fall_strictly_and_change_only_where_they_must(seed: int) -> None:
    draws = np.random.default_rng(seed)
    coarse = draws.choice(np.float32([0.0, -0.0, 1e-45, -1e-45, 0.1, 1.0, np.nextafter(np.float32(1), np.float32(0)), -7.5, 3e38]), (6, 9))
    scores = -np.sort(-coarse, axis=1)
    found = falling_scores(scores)
    assert found.dtype == np.float32 and (np.diff(found.astype(np.float64), axis=1) < 0).all()
    assert (found <= scores).all()
    first_of_ties = np.diff(scores, axis=1, prepend=np.inf) < 0
    unmoved = first_of_ties & (np.minimum.accumulate(np.pad(found, ((0, 0), (1, 0)), constant_values=np.inf), axis=1)[:, :-1] > scores)
    assert (found[unmoved] == scores[unmoved]).all() and unmoved[:, 0].all()


def test_a_tail_on_another_scale_keeps_its_differences() -> None:
    """Head 3, 2, then cosines 0.5, 0.25 (below already); head -3, -5, then the same cosines, which rise."""
    found = falling_scores(np.float32([[3, 2, 0.5, 0.25], [-3, -5, 0.5, 0.25]]))
    assert found[0].tolist() == [3, 2, 0.5, 0.25]
    assert found[1, :2].tolist() == [-3, -5] and found[1, 2] < -5
    assert found[1, 2:] == pytest.approx([-5, -5.25], abs=1e-6)


def test_the_scores_of_a_ranking_without_a_tie_are_untouched() -> None:
    ranking = Ranking("image_to_text", *np.zeros((5, 1), dtype=np.int64))
    scores = np.float32([[0.9, 0.5, -0.25]])
    assert falling_scores(replace(ranking, top_scores_QK=scores).top_scores_QK).tobytes() == scores.tobytes()

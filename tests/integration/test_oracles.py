"""The figures of real rankings against independent oracles: the demo's test scenes and a share of the photographs, by the demo's base."""

from collections.abc import Iterator
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import AP, RR, Rprec, Success

from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.manifest.manifest import Manifest, read_manifest
from eval.metrics.evaluate import evaluate
from eval.metrics.metrics import RECALL_AT
from eval.search.exact import search_both
from eval.search.ranking import DIRECTIONS, Direction
from eval.search.stage import Stage

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "flickr8k"
NUM_PHOTOGRAPHS, GAP = 150, 1e-6


def scenes() -> RetrievalSet:
    return load_split(read_manifest(ROOT / "demo" / "data" / "scenes.parquet", columns={"group": "scene"}), "test")


def photographs() -> RetrievalSet:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs at {PHOTOGRAPHS}")
    whole = read_manifest(PHOTOGRAPHS)
    chosen = whole.images.of_split("val").take(np.arange(NUM_PHOTOGRAPHS))
    return load_split(Manifest(whole.source, whole.rows, chosen), "val")


@pytest.fixture(scope="module", params=[scenes, photographs], ids=["demo", "photographs"])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[RetrievalSet, np.ndarray, np.ndarray]]:
    """A data set, and the embeddings of its images and captions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dataset: RetrievalSet = request.param()
    model, inputs = load_siglip(ROOT / "demo" / "models" / "siglip-base")
    yield dataset, embed_images(model, inputs, dataset), embed_captions(model, inputs, dataset.captions)
    torch.set_num_threads(threads)


def dense(direction: Direction, images_ID: np.ndarray, captions_CD: np.ndarray) -> np.ndarray:
    scores_IC = images_ID.astype(np.float64) @ captions_CD.astype(np.float64).T
    return scores_IC if direction == "image_to_text" else scores_IC.T


def test_every_rank_is_that_of_a_float64_loop(case: tuple[RetrievalSet, np.ndarray, np.ndarray]) -> None:
    """Items nearer than a millionth may stand either way; no other."""
    dataset, images, captions = case
    found = search_both(images, captions, dataset.positives("image_to_text"), dataset.positives("text_to_image"), 10)
    for direction in DIRECTIONS:
        ranking, scores = found[direction], dense(direction, images, captions)
        loose = 0
        for query in range(ranking.num_queries):
            span = slice(ranking.positive_offsets[query], ranking.positive_offsets[query + 1])
            for item, rank in zip(ranking.positive_indices_P[span], ranking.positive_ranks_P[span], strict=True):
                least = 1 + int((scores[query] > scores[query, item] + GAP).sum())
                most = int((scores[query] >= scores[query, item] - GAP).sum())
                assert least <= rank <= most
                loose += most - least
        assert loose <= 0.02 * len(ranking.positive_ranks_P)


def test_every_metric_is_that_of_ir_measures(case: tuple[RetrievalSet, np.ndarray, np.ndarray]) -> None:
    """Their run is the whole ranking. They have no mAP@R: AP cut at R equals it for queries with one relevant item."""
    dataset, images, captions = case
    num = max(dataset.num_images, dataset.num_captions)
    rankings = search_both(images, captions, dataset.positives("image_to_text"), dataset.positives("text_to_image"), num)
    figures = evaluate(dataset, [Stage("model", rankings)])
    for direction in DIRECTIONS:
        ranking = rankings[direction]
        right = dataset.positives(direction)
        qrels = [ir_measures.Qrel(f"q{q}", f"d{item:05d}", 1) for q in range(ranking.num_queries) for item in right.of(q)]
        run = [
            ir_measures.ScoredDoc(f"q{q}", f"d{item:05d}", 1.0 / place)
            for q, items in enumerate(ranking.top_indices_QK.tolist())
            for place, item in enumerate(items, 1)
        ]
        measures = [RR, Rprec, AP @ 1, *(Success @ k for k in RECALL_AT)]
        theirs = ir_measures.calc_aggregate(measures, qrels, run)
        ours = figures.stages["model"][direction]
        assert ours["MRR"] == pytest.approx(theirs[RR], abs=1e-12)
        assert ours["R-Precision"] == pytest.approx(theirs[Rprec], abs=1e-12)
        for k in RECALL_AT:
            assert ours[f"R@{k}"] == pytest.approx(theirs[Success @ k], abs=1e-12)
        if (right.counts == 1).all():
            assert ours["mAP@R"] == pytest.approx(theirs[AP @ 1], abs=1e-12)

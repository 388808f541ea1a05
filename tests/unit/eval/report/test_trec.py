"""The TREC files, read back by ir-measures, give the figures of the report."""

from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, Rprec, Success

from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from eval.metrics.evaluate import evaluate
from eval.metrics.metrics import RECALL_AT
from eval.report.trec import write_trec
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from tests.unit.eval.one_direction import search


@pytest.fixture(scope="module")
def data() -> RetrievalSet:
    texts = [f"caption {n % 17}" for n in range(48)]  # some are said of several images
    images = [ManifestImage(f"a photo {n:02d}.jpg", None, Path("x"), None, 1, None, texts[3 * n : 3 * n + 3], "") for n in range(16)]
    return RetrievalSet(images, None, source="hand", split=None)


def test_ir_measures_finds_the_figures_of_the_report(data: RetrievalSet, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(64, 8))
    images, captions = np.split(np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)), [16])
    rankings = {
        "image_to_text": search("image_to_text", images, captions, data.positives("image_to_text"), 48),
        "text_to_image": search("text_to_image", captions, images, data.positives("text_to_image"), 16),
    }
    figures = evaluate(data, [Stage("tuned+blip", rankings)])  # type: ignore[arg-type]
    write_trec(tmp_path, figures.queries, data)
    for direction in DIRECTIONS:
        qrels = list(ir_measures.read_trec_qrels(str(tmp_path / f"{direction}.qrels")))
        run = list(ir_measures.read_trec_run(str(tmp_path / f"tuned+blip.{direction}.run")))
        theirs = ir_measures.calc_aggregate([RR, Rprec, *(Success @ k for k in RECALL_AT)], qrels, run)
        ours = figures.stages["tuned+blip"][direction]
        assert ours["MRR"] == pytest.approx(theirs[RR], abs=1e-12)
        assert ours["R-Precision"] == pytest.approx(theirs[Rprec], abs=1e-12)
        for k in RECALL_AT:
            assert ours[f"R@{k}"] == pytest.approx(theirs[Success @ k], abs=1e-12)
    assert (tmp_path / "image_to_text.qrels").read_text().startswith("a%20photo%2000.jpg 0 a%20photo%2000.jpg#0 1\n")

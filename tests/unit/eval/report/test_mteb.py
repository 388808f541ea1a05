"""MTEB's result files: every score by ir-measures from the same rankings, and the form of mteb's TaskResult."""

import json
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, P, R, Success, nDCG
from pydantic import BaseModel, ConfigDict

from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from eval.report.mteb import DEPTHS, write_mteb
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from tests.unit.eval.one_direction import search


class TaskResult(BaseModel):
    """The fields of mteb 2.26's class of this name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dataset_revision: str
    task_name: str
    mteb_version: str | None
    scores: dict[str, list[dict[str, float | str | list[str]]]]
    evaluation_time: float | None
    kg_co2_emissions: float | None


@pytest.fixture(scope="module")
def data() -> RetrievalSet:
    """Queries of one to thirty relevant items, in galleries of 30 and 90."""
    texts = [f"caption {n % 20}" if n < 60 else "a photo" for n in range(90)]
    images = [ManifestImage(f"{n:02d}", None, Path("x"), None, 1, None, texts[3 * n : 3 * n + 3], "") for n in range(30)]
    return RetrievalSet(images, None, source="some/where/my-birds.parquet", split="test")


def test_scores_are_those_of_trec_eval_and_the_files_are_mtebs(data: RetrievalSet, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    images, captions = np.split(vectors, [30])
    rankings = {
        "image_to_text": search("image_to_text", images, captions, data.positives("image_to_text"), 90),
        "text_to_image": search("text_to_image", captions, images, data.positives("text_to_image"), 30),
    }
    stage = Stage("tuned+blip", rankings, {"seconds": 2})  # type: ignore[arg-type]
    paths = write_mteb(tmp_path, [stage], data, ["deu-Latn"])
    names = ["MyBirdsI2TRetrieval", "MyBirdsT2IRetrieval"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [f"tuned+blip/{name}.json" for name in names]
    for direction, path, name in zip(DIRECTIONS, paths, names, strict=True):
        record = TaskResult.model_validate_json(path.read_text(encoding="utf-8"))
        assert (record.task_name, record.dataset_revision, record.evaluation_time) == (name, data.sha256(), 2.0)
        assert list(record.scores) == ["test"]
        (scores,) = record.scores["test"]
        assert (scores["hf_subset"], scores["languages"], scores["main_score"]) == ("default", ["deu-Latn"], scores["ndcg_at_10"])
        ranking, positives = rankings[direction], data.positives(direction)
        run = [
            ir_measures.ScoredDoc(f"{query:02d}", f"{item:02d}", -float(rank))
            for query, items in enumerate(ranking.top_indices_QK.tolist())
            for rank, item in enumerate(items)
        ]
        qrels = [ir_measures.Qrel(f"{q:02d}", f"{item:02d}", 1) for q in range(ranking.num_queries) for item in positives.of(q)]
        for k in DEPTHS:
            asked = {"ndcg": nDCG @ k, "map": AP @ k, "recall": R @ k, "precision": P @ k, "mrr": RR @ k, "hit_rate": Success @ k}
            theirs = ir_measures.calc_aggregate(list(asked.values()), qrels, run)
            for metric, measure in asked.items():
                assert scores[f"{metric}_at_{k}"] == pytest.approx(theirs[measure], abs=1e-12), f"{direction} {metric} at {k}"
        assert scores["accuracy"] == scores["recall_at_1"]
        assert len(scores) == 6 * len(DEPTHS) + 4


def test_each_stage_has_a_folder_and_data_of_the_hub_their_commit(
    data: RetrievalSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.dataset.retrieval_set.data_revision", lambda source: "abc123")
    vectors = np.float32(np.eye(120, 8))
    rankings = {
        "image_to_text": search("image_to_text", vectors[:30], vectors[30:], data.positives("image_to_text"), 10),
        "text_to_image": search("text_to_image", vectors[30:], vectors[:30], data.positives("text_to_image"), 10),
    }
    paths = write_mteb(tmp_path, [Stage(name, rankings) for name in ("base", "tuned")], data, ["eng-Latn"])  # type: ignore[arg-type]
    assert sorted({path.parent.name for path in paths}) == ["base", "tuned"] and len(paths) == 4
    assert {json.loads(path.read_text())["dataset_revision"] for path in paths} == {"abc123"}

"""Few texts under many images: the report of one gallery shows the very figures of the other."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from eval.__main__ import parse, run
from eval.dataset.different_texts import Gallery
from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import with_ground_truth
from eval.encoder.checkpoint import load_inputs
from eval.manifest.manifest import ManifestImage
from eval.metrics.stage_metrics import METRICS
from eval.processes import Processes
from eval.report.texts import text_lines
from eval.search.ranking import DIRECTIONS
from rerank.answers.collection import read_collection
from rerank.evaluation import EvaluationPlan, Report, evaluate_plan
from tests.siglip2 import write_siglip2
from tests.small_job import SmallWorld, load

TEXTS = ["a red circle", "a green bar", "a blue square"]


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps punctuation, so that repeats of a normalised text have embeddings of their own."""
    return write_siglip2(tmp_path_factory.mktemp("siglip2") / "tiny", TEXTS * 5)


def few_texts(world: SmallWorld) -> RetrievalSet:
    """14 images under three texts, some written with a mark."""
    source = load(world.manifest, "test")
    rows = [(TEXTS[number % 3].capitalize() + "!" * (number % 5), number) for number in range(source.num_images)]
    images = [ManifestImage(f"i{n:02d}", "test", Path(source.path(n)), None, n, None, [text], "hand") for text, n in rows]
    return RetrievalSet(images, None, source="hand", split="test")


def measured(data: RetrievalSet, model: Path, gallery: Gallery) -> dict[str, Any]:
    plan = EvaluationPlan(checkpoints={"model": str(model), "again": str(model)})
    return cast(Report, evaluate_plan(plan, with_ground_truth(data, gallery=gallery))).record


def test_each_gallerys_report_holds_the_figures_of_the_other(small_world: SmallWorld, siglip2: Path) -> None:
    data = few_texts(small_world)
    records = {gallery: measured(data, siglip2, cast(Gallery, gallery)) for gallery in ("every", "different")}
    for asked, other, number in (("every", "different", 3), ("different", "every", 14)):
        texts, figures = records[asked]["texts"], records[other]["stages"]
        assert (texts["num_captions"], texts["num_different"], texts["gallery"]) == (14, 3, asked)
        assert (texts["other_gallery"]["gallery"], texts["other_gallery"]["num_captions"]) == (other, number)
        wanted = {name: {d: {metric: figures[name][d][metric] for metric in METRICS} for d in DIRECTIONS} for name in ("model", "again")}
        assert texts["other_gallery"]["stages"] == wanted
    assert records["every"]["stages"]["model"]["image_to_text"] != records["different"]["stages"]["model"]["image_to_text"]
    data_of = {gallery: record["data"] for gallery, record in records.items()}
    assert data_of["different"]["num_captions"] == 3 and data_of["different"]["sha256"] == data_of["every"]["sha256"]


def test_there_is_no_other_gallery_where_texts_hardly_repeat(small_world: SmallWorld) -> None:
    plan = EvaluationPlan(checkpoints={"model": str(small_world.base)})
    source = load(small_world.manifest, "test")
    images = [ManifestImage(f"i{n:02d}", "test", Path(source.path(n)), None, n, None, [f"text {n}"], "hand") for n in range(12)]
    record = cast(Report, evaluate_plan(plan, RetrievalSet(images, None, source="hand", split="test"))).record
    assert record["texts"]["num_different"] == 12 and "other_gallery" not in record["texts"]


def test_the_command_says_it_at_the_start_and_asks_for_either(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, manifest = few_texts(small_world), tmp_path / "pairs.jsonl"
    rows = [{"id": name, "image": data.path(n), "caption": data.captions[n], "split": "test"} for n, name in enumerate(data.image_ids)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ["--model", str(small_world.base), "--data", str(manifest), "--split", "test", "--image-root", str(small_world.manifest.parent)]
    asked += ["--output", str(tmp_path / "report"), "--num-workers", "0", "--trec", "--gallery", "different"]
    run(parse(asked), Processes(), torch.device("cpu"))
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "texts    3 different texts among 14 captions"
    record = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert record["data"]["truth"]["gallery"] == "different" and record["data"]["num_captions"] == 3
    assert "Other gallery" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    qrels = (tmp_path / "report" / "trec" / "text_to_image.qrels").read_text(encoding="utf-8").splitlines()
    assert len(qrels) == 14 and {line.split()[0] for line in qrels} == {"i00#0", "i01#0", "i02#0"}


def test_rerank_says_what_its_captions_are_like(small_world: SmallWorld, tmp_path: Path) -> None:
    """Captions that are one but for case stay, and are counted; so is what the tokenizer cuts."""
    long = "a red circle at the left, a green square at the top, number "
    (tmp_path / "captions.txt").write_text(f"A red bar\na red bar!\na red bar!\n{long}1\n{long}2\n", encoding="utf-8")
    collection = read_collection(str(small_world.manifest.parent / "pictures"), str(tmp_path / "captions.txt"))
    assert collection.num_captions == 4 and collection.captions_read.num_repeated == 1
    lines = text_lines(collection.text_record(load_inputs(str(small_world.base)), Processes()))
    assert lines[0] == "3 different texts among 4 captions"
    assert lines[1].startswith("2 captions are longer than the 12 tokens") and lines[2].startswith("2 captions are of the same tokens")

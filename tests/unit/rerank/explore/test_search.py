"""What a query finds: compared with plain transformers; what it is told; and what cannot be searched with or for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, SiglipModel

from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.errors import UserError
from rerank.explore.__main__ import parse, prepared
from rerank.explore.probability import StageProbability, stage_probabilities
from rerank.explore.search import Found, Searcher
from rerank.explore.server import bound, check_extra
from rerank.scorers.load import load_scorer
from tests.small_job import SmallWorld

SENTENCE = "a red circle at the left"
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module", autouse=True)
def without_the_extra() -> Iterator[None]:
    """Nothing here needs Gradio."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rerank.explore.server.check_extra", lambda: None)
        yield


def searching(model: Path, images: Path, *options: str) -> Searcher:
    return prepared(parse([str(model), "--images", str(images), "--num-workers", "0", "--top-k", "5", "--device", "cpu", *options]))[0]


@pytest.fixture(scope="module")
def searcher(small_world: SmallWorld, photos: Path, tiny_blip: Path) -> Searcher:
    return searching(small_world.base, photos, "--rerank", str(tiny_blip))


@pytest.fixture(scope="module")
def captioned(small_world: SmallWorld) -> Searcher:
    return searching(small_world.base, small_world.manifest, "--split", "val")


def plain_cosines(model: Path, sentences: list[str], pictures: list[Path]) -> np.ndarray:
    """Of sentences with pictures, (sentences, pictures), as transformers itself computes them."""
    siglip, processor = SiglipModel.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model, use_fast=False)
    length = siglip.config.text_config.max_position_embeddings
    with torch.no_grad():
        text = processor.tokenizer(sentences, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        text_SD = siglip.text_model(input_ids=text["input_ids"]).pooler_output
        pixels = processor.image_processor([Image.open(path).convert("RGB") for path in pictures], return_tensors="pt")["pixel_values"]
        pictures_ND = siglip.vision_model(pixel_values=pixels).pooler_output
    return torch.nn.functional.cosine_similarity(text_SD[:, None], pictures_ND[None], dim=-1).numpy()


def test_a_sentence_finds_what_plain_transformers_ranks_first(searcher: Searcher, small_world: SmallWorld, photos: Path) -> None:
    waiting, done = list(searcher.by_sentence(f"  {SENTENCE}\n"))
    (first, none_yet), (same, reranked) = waiting.groups["Pictures"], done.groups["Pictures"]
    paths = sorted(path for path in photos.iterdir() if path.name != "val-003.png")
    cosines = plain_cosines(small_world.base, [SENTENCE], paths)[0]
    order = np.argsort(-cosines)[:5]
    assert [hit.item.id for hit in first.hits] == [paths[place].name for place in order] and same == first
    np.testing.assert_allclose([hit.cosine for hit in first.hits], cosines[order], atol=1e-5)
    model = SiglipModel.from_pretrained(small_world.base)
    logits = cosines[order] * model.logit_scale.exp().item() + model.logit_bias.item()
    np.testing.assert_allclose([hit.logit for hit in first.hits], logits, atol=1e-4)
    assert done.query.text == SENTENCE and none_yet.hits == [] and none_yet.remark == "Scoring 5 pairs …"
    assert (first.title, reranked.title) == ("First stage", "Reranked by blip") and first.seconds > 0 and reranked.seconds > 0
    assert all(hit.item.picture.startswith("data:image/jpeg;base64,") for hit in first.hits)


def test_the_reranked_list_has_the_cross_encoders_order(searcher: Searcher, photos: Path, tiny_blip: Path) -> None:
    (first, reranked) = list(searcher.by_sentence(SENTENCE))[-1].groups["Pictures"]
    scorer = load_scorer(str(tiny_blip), device="cpu")
    expected = {hit.item.id: float(scorer.score(Image.open(photos / hit.item.id).convert("RGB"), [SENTENCE])[0]) for hit in first.hits}
    assert [hit.item.id for hit in reranked.hits] == sorted(expected, key=lambda name: -expected[name])
    np.testing.assert_allclose([hit.score for hit in reranked.hits], sorted(expected.values(), reverse=True), atol=1e-4)
    places = {hit.item.id: hit.rank for hit in first.hits}
    assert all(hit.first_rank == places[hit.item.id] and hit.places_up == hit.first_rank - hit.rank for hit in reranked.hits)


def test_a_picture_finds_itself_and_without_captions_nothing_else(searcher: Searcher, photos: Path) -> None:
    (found,) = searcher.by_picture(photos / "val-005.png")
    (similar,) = found.groups.pop("Similar pictures")
    assert found.groups == {} and similar.hits[0].item.id == "val-005.png" and similar.hits[0].cosine == pytest.approx(1, abs=1e-5)
    assert {(hit.logit, hit.score, hit.probability) for hit in similar.hits} == {(None, None, None)}
    cosines = [hit.cosine for hit in similar.hits]
    assert cosines == sorted(cosines, reverse=True) and len(cosines) == 5


def test_a_picture_finds_captions_where_the_manifest_has_some(captioned: Searcher, small_world: SmallWorld) -> None:
    path = small_world.manifest.parent / "pictures" / "val-005.png"
    (found,) = captioned.by_picture(path)
    (captions,) = found.groups["Captions"]
    rows = [json.loads(line) for line in small_world.manifest.read_text().splitlines()]
    texts = list(dict.fromkeys(text for row in rows if row["split"] == "val" for text in row["captions"]))
    cosines = plain_cosines(small_world.base, texts, [path])[:, 0]
    expected = np.sort(cosines)[::-1][:5]
    np.testing.assert_allclose([hit.cosine for hit in captions.hits], expected, atol=1e-5)
    assert captions.hits[0].item.text == texts[int(np.argmax(cosines))]


def test_a_manifest_without_captions_is_searched_all_the_same(small_world: SmallWorld, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"image": str(path)}) + "\n" for path in sorted(photos.glob("val-00[0-2].png"))))
    found = searching(small_world.base, tmp_path / "m.jsonl", "--image-root", str(photos))
    assert found.gallery.collection.num_images == 3 and found.gallery.collection.num_captions == 0
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": "val-000.png", "words": "x"}) + "\n")
    with pytest.raises(UserError, match="'cptions', which is not there"):
        searching(small_world.base, tmp_path / "m.jsonl", "--image-root", str(photos), "--column", "captions=cptions")


def test_broken_pictures_are_named_and_left_out(searcher: Searcher, small_world: SmallWorld, tmp_path: Path) -> None:
    (one,) = searcher.gallery.broken
    assert one.image == "val-003.png" and "cannot be decoded" in one.reason and searcher.gallery.collection.num_images == 13
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="not one of its 1 pictures decodes"):
        searching(small_world.base, tmp_path)


def said(found: Iterator[Found]) -> str:
    with pytest.raises(UserError) as caught:
        list(found)
    return str(caught.value)


def test_what_cannot_be_searched_with_is_a_sentence(searcher: Searcher, tmp_path: Path) -> None:
    assert said(searcher.by_sentence(" \n ")) == "Nothing to search for yet: type a sentence, or drop a picture."
    assert said(searcher.by_sentence("漢字")).startswith("The model's tokenizer knows nothing of '漢字'")
    (tmp_path / "x.png").write_bytes(b"no picture")
    assert said(searcher.by_picture(tmp_path / "x.png")).startswith("The picture you gave: cannot be decoded: no picture of a known format")
    long = list(searcher.by_sentence("a red circle " * 20))[-1]
    assert (
        long.notes == ["The model reads 12 tokens; this sentence has more, and its end is not read."] and len(long.groups["Pictures"]) == 2
    )


def calibration(weights: str, fingerprint: str) -> dict[str, Any]:
    """As the format has it: probability is half the score, from -0.5 to 1, or 0.2 at any score."""

    def stage(reranker: str | None, points: list[list[float]]) -> dict[str, Any]:
        directions = {one: {"points": points, "thresholds": []} for one in ("image_to_text", "text_to_image")}
        return {"reranker": reranker, "top_k": 8} | directions

    stages = {"tuned": stage(None, [[0.0, 0.0], [1.0, 0.5]]), "tuned+blip": stage(fingerprint, [[0.0, 0.2]])}
    return {"version": 1, "model": weights, "fitted_on": {"split": "val"}, "stages": stages}


def test_probabilities_are_read_for_both_stages(searcher: Searcher, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps(calibration("abc", "def")))
    first, reranked = stage_probabilities(str(tmp_path), "abc", "def")
    assert first.remark == "fitted on val, the first 8 answers to each query"
    np.testing.assert_allclose(first.of("text_to_image", np.array([-3.0, 0.5, 9.0])), [0.0, 0.25, 0.5])
    np.testing.assert_allclose(reranked.of("image_to_text", np.array([-3.0, 4.0])), [0.2, 0.2])
    other = Searcher(searcher._model, searcher._inputs, searcher.gallery, top_k=3, scorer=searcher.scorer, probabilities=(first, reranked))
    both = list(other.by_sentence(SENTENCE))[-1].groups["Pictures"]
    assert [hit.probability for hit in both[0].hits] == pytest.approx([max(0, hit.cosine) / 2 for hit in both[0].hits])
    assert {hit.probability for hit in both[1].hits} == {0.2} and both[0].remark.startswith("Probability: fitted on val")


def test_without_a_calibration_the_remark_has_the_remedy(searcher: Searcher, tmp_path: Path) -> None:
    first, reranked = list(searcher.by_sentence(SENTENCE))[-1].groups["Pictures"]
    assert "not calibrated" in first.remark and "--calibrate-on" in first.remark and reranked.remark == first.remark
    assert {hit.probability for hit in (*first.hits, *reranked.hits)} == {None}
    (tmp_path / "calibration.json").write_text(json.dumps(calibration("abc", "def")))
    assert "of another model" in stage_probabilities(str(tmp_path), "xyz", None)[0].remark
    alone, other = stage_probabilities(str(tmp_path), "abc", "another reranker")
    assert alone.stage is not None and other.stage is None and "none is of this cross-encoder" in other.remark
    assert StageProbability("why").of("text_to_image", np.zeros(2)) is None
    for text in ("{", "[]", json.dumps(calibration("abc", "def") | {"version": 2}), json.dumps({"version": 1, "stages": {}})):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(UserError, match="calibration.json: (could not be read|expected a calibration)"):
            stage_probabilities(str(tmp_path), "abc", None)


def test_the_hash_that_a_calibration_names_is_of_the_model_as_loaded(searcher: Searcher, small_world: SmallWorld) -> None:
    assert hash_weights(searcher._model) == hash_weights(load_siglip(str(small_world.base))[0])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{base}", "--images", "{nothing}/not-here"], "no such file or folder"),
        (["{base}", "--images", "{nothing}"], "no pictures in it or below it"),
        (["{photos}", "--images", "{photos}"], "RUN_OR_MODEL: {photos}: a folder without config.json"),
        (["{run}", "--images", "{photos}"], "{run} has no export yet"),
        (["{base}", "--images", "{photos}", "--split", "test"], "are for manifests; leave them out"),
        (["{base}", "--images", "{photos}", "--rerank", "{base}"], "--rerank: '{base}' cannot rerank"),
        (["{base}", "--images", "{photos}", "--device", "abacus"], "--device abacus: cannot be used here"),
    ],
)
def test_what_is_wrong_is_told_before_the_work(
    small_world: SmallWorld, photos: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    places = {"base": small_world.base, "photos": photos, "nothing": tmp_path / "nothing", "run": tmp_path / "run"}
    for name in ("nothing", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: run\n")
    with pytest.raises(UserError) as caught:
        prepared(parse([word.format(**places) for word in words]))
    assert expected.format(**places) in str(caught.value)


def test_a_run_is_its_export(small_world: SmallWorld, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: run\n")
    (tmp_path / "export").symlink_to(small_world.base)
    asked = ["--images", str(photos), "--num-workers", "0"]
    assert prepared(parse([str(tmp_path), *asked]))[1] == {"model": str(tmp_path / "export"), "reranker": ""}


def test_a_missing_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[explore\]'"):
        check_extra()


def test_a_port_that_is_taken_is_told() -> None:
    with bound(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: cannot be used .*Give another one, or 0"), bound(port):
            pass

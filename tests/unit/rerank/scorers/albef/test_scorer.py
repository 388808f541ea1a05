"""ALBEF's scores against a plain oracle, one pair at a time in float64; what is shared; what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.errors import UserError
from rerank.convert.convert import convert
from rerank.scorers.albef.scorer import AlbefScorer, clean_caption
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from rerank.scorers.supported import check_cross_encoder
from tests.unit.rerank.scorers.albef import albef_files as files
from tests.unit.rerank.scorers.albef.albef_oracle import oracle_logits

MEAN, DEVIATION = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
CAPTIONS = [
    "a red circle above a blue square",
    "The Dog runs!",
    "dog",
    "the well-worn dog's circle",
    " ".join(["the red dog and the blue cat"] * 9),
    "zebra",
    "",
    "a caf\u00e9 / a dog",
    "<person> runs",
]


@pytest.fixture(scope="module")
def tiny_albef(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small release, converted: two text layers of four look at the picture."""
    place = tmp_path_factory.mktemp("albef")
    torch.save(files.released(files.random_tensors(), tuned=True), place / "tuned.pth")
    convert(str(place / "tuned.pth"), place / "tiny", tokenizer=str(files.write_tokenizer(place / "words")))
    return place / "tiny"


def ids_of(caption: str) -> list[int]:
    """Whole words that are in the vocabulary, [UNK] for the others, [CLS] before them; accents lost, as bert-base-uncased loses them."""
    vocabulary = {word: place for place, word in enumerate(files.SPECIAL + files.WORDS)}
    words = "".join(" " if c in "-/" else c for c in caption.lower() if c not in ",.'!?\"()*#:;~").replace("<person>", "person")
    found = [vocabulary.get(word, vocabulary["[UNK]"]) for word in words.replace("\u00e9", "e").split()[:30]]
    return [2, *found[:29]]


def oracle_scores(image, captions: list[str]) -> np.ndarray:
    """Both logits of each pair, float64, shape (N, 2)."""
    square = np.asarray(image.convert("RGB").resize((files.IMAGE, files.IMAGE), 3), dtype=np.float64) / 255
    pixels = ((square - MEAN) / DEVIATION).transpose(2, 0, 1)
    tensors = files.random_tensors()
    return np.stack([oracle_logits(tensors, files.SIZES, pixels, ids_of(caption)) for caption in captions])


def plain_words(captions: list[str]) -> list[str]:
    """Those whose words are whole entries of the vocabulary or unknown: the oracle's tokenizer knows no word pieces."""
    return [caption for caption in captions if "dog's" not in caption]


def test_scores_equal_the_oracle_for_any_chunk_size_and_any_bound(tiny_albef: Path, noise, monkeypatch) -> None:
    image, captions = noise(1), plain_words(CAPTIONS)
    expected = oracle_scores(image, captions)[:, 1]
    assert np.ptp(expected) > 0.1  # random weights that answer alike would prove nothing
    for chunk_size, bound in ((64, 24_000), (1, 24_000), (3, 0)):
        monkeypatch.setattr("rerank.scorers.albef.scorer.CACHED_CAPTIONS", bound)
        scorer = AlbefScorer.load(str(tiny_albef), device="cpu")
        scorer.captions_at_once = chunk_size
        scores = scorer.score(image, captions)
        assert scores.dtype == np.float32 and scores.shape == (len(captions),)
        np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)


def test_margin_equals_the_oracle_too(tiny_albef: Path, noise) -> None:
    image, captions = noise(2), plain_words(CAPTIONS)
    expected = oracle_scores(image, captions)
    scores = AlbefScorer.load(str(tiny_albef), device="cpu", settings=ScorerSettings(score_kind="margin")).score(image, captions)
    np.testing.assert_allclose(scores, expected[:, 1] - expected[:, 0], atol=2e-5, rtol=0)


def test_a_caption_is_read_once_for_all_images_and_an_image_once_for_all_captions(tiny_albef: Path, noise) -> None:
    scorer = AlbefScorer.load(str(tiny_albef), device="cpu")
    scorer.captions_at_once = 4
    calls = {"image": 0, "key": [], "text": 0, "last": []}
    model = scorer._model
    layers = model.text_encoder.encoder.layer
    model.visual_encoder.norm.register_forward_hook(lambda *args: calls.update(image=calls["image"] + 1))
    layers[2].crossattention.self.key.register_forward_hook(lambda module, args, output: calls["key"].append(tuple(output.shape[:2])))
    layers[0].output.register_forward_hook(lambda *args: calls.update(text=calls["text"] + 1))
    layers[3].output.register_forward_hook(lambda module, args, output: calls["last"].append(tuple(output.shape[:2])))
    scorer.score(noise(1), CAPTIONS)
    scorer.score(noise(2), CAPTIONS[::-1])
    assert calls["image"] == 2
    assert calls["key"] == [(1, 17)] * 2  # once per image, not per batch or caption: the class token and 16 patches
    assert calls["text"] == len(CAPTIONS)  # not twice as many
    assert calls["last"] == [(4, 1), (4, 1), (1, 1)] * 2  # the last layer works on the first token alone


def test_states_kept_stay_within_their_bound(tiny_albef: Path, noise, monkeypatch) -> None:
    monkeypatch.setattr("rerank.scorers.albef.scorer.CACHED_CAPTIONS", 30)
    scorer = AlbefScorer.load(str(tiny_albef), device="cpu")
    scorer.score(noise(1), [f"{first} {second} dog" for first in files.WORDS for second in files.WORDS])
    assert scorer._states.cache_info().currsize == 30


def test_scores_are_the_same_bits_whatever_was_scored_before(tiny_albef: Path, noise) -> None:
    fresh = load_scorer(str(tiny_albef), device="cpu").score(noise(1), CAPTIONS)
    used = load_scorer(str(tiny_albef), device="cpu")
    used.score(noise(2), CAPTIONS[3:][::-1])
    assert np.array_equal(used.score(noise(1), CAPTIONS), fresh)
    assert np.array_equal(used.score(noise(1), CAPTIONS), fresh)


def test_company_matters_only_to_float_noise_and_the_image_matters(tiny_albef: Path, noise) -> None:
    scorer = load_scorer(str(tiny_albef), device="cpu")
    together = scorer.score(noise(1), CAPTIONS)
    alone = np.concatenate([scorer.score(noise(1), [caption]) for caption in CAPTIONS])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    assert np.abs(together - scorer.score(noise(2), CAPTIONS)).max() > 0.02
    same = scorer.score(noise(1), ["a dog", *CAPTIONS, "A  dog!", "a, dog."])
    assert same[0] == same[-2] == same[-1]
    assert scorer.score(noise(1), []).shape == (0,)


def test_bfloat16_gives_float32_scores_near_float32(tiny_albef: Path, noise) -> None:
    full = load_scorer(str(tiny_albef), device="cpu").score(noise(1), CAPTIONS)
    half = load_scorer(str(tiny_albef), device="cpu", settings=ScorerSettings(precision="bfloat16")).score(noise(1), CAPTIONS)
    assert half.dtype == np.float32
    assert 1e-6 < np.abs(full - half).max() < 0.2
    assert np.any(half != torch.from_numpy(half).bfloat16().float().numpy())


def test_fingerprint_follows_what_changes_scores_and_nothing_else(tiny_albef: Path, tmp_path: Path) -> None:
    fingerprint = load_scorer(str(tiny_albef), device="cpu").fingerprint
    assert load_scorer(str(tiny_albef), device="cpu").fingerprint == fingerprint
    changes = [{"score_kind": "margin"}, {"precision": "bfloat16"}]
    others = [load_scorer(str(tiny_albef), device="cpu", settings=ScorerSettings(**change)).fingerprint for change in changes]
    assert len({fingerprint, *others}) == 1 + len(changes)
    folder = changed(tiny_albef, tmp_path, weights=lambda tensors: tensors["itm_head.bias"].add_(1e-3))
    assert load_scorer(str(folder), device="cpu").fingerprint != fingerprint


def test_it_says_what_it_reads_and_its_kind(tiny_albef: Path) -> None:
    assert check_cross_encoder(str(tiny_albef)) == "albef"
    scorer = load_scorer(str(tiny_albef), device="cpu")
    assert (scorer.name, str(scorer.reads)) == ("albef", "pictures at 32 x 32 pixels, captions of up to 30 tokens")


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A Dog, running.", "a dog running"),
        ("the dog's well-worn ball/bone", "the dogs well worn ball bone"),  # BLIP's cleaning keeps the apostrophe and the hyphen
        ("one.two", "onetwo"),
        ("<person> waves; #1 (really)?", "person waves 1 really"),
        ("two   dogs \n on\tgrass \n", "two dogs on grass"),
        (" ".join(f"w{i}" for i in range(40)), " ".join(f"w{i}" for i in range(30))),
    ],
)
def test_cleaning_is_the_originals(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned


def changed(folder: Path, place: Path, *, weights=None, config=None, without: str = "") -> Path:
    """A copy of the cross-encoder with its weights or its config changed, or a file left out."""
    copy = place / "changed"
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != without:
            (copy / path.name).write_bytes(path.read_bytes())
    if weights:
        tensors = load_file(copy / "model.safetensors")
        weights(tensors)
        save_file(tensors, copy / "model.safetensors")
    if config:
        values = json.loads((copy / "config.json").read_text())
        config(values)
        (copy / "config.json").write_text(json.dumps(values))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: [tensors.pop(f"itm_head.{part}") for part in ("weight", "bias")], r"2 missing: itm_head\.bias, itm_head\.weight"),
        (lambda tensors: tensors.update(stray=torch.zeros(1)), "1 left over: stray"),
        (lambda tensors: tensors.update({"itm_head.bias": torch.zeros(3)}), r"1 of another shape: itm_head\.bias \(3,\) for \(2,\)"),
        (lambda tensors: tensors["itm_head.bias"].fill_(float("nan")), r"1 not finite: itm_head\.bias"),
    ],
)
def test_weights_that_are_not_a_cross_encoders_are_refused(tiny_albef: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(str(changed(tiny_albef, tmp_path, weights=change)))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("vision_config", {"image_size": 64}, "pictures of 32 x 32 pixels where vision_config.image_size is 64"),
        ("vision_config", {"image_size": 30}, "image_size 30 is no multiple of patch_size 8"),
        ("text_config", {"vocab_size": 500}, "21 tokens, the model 500"),
        ("text_config", {"num_attention_heads": 3}, "128 wide does not divide into 3 heads"),
        ("text_config", {"fusion_layer": 4}, "fusion_layer 4 is not below"),
        ("text_config", {"hidden_size": "wide"}, "expected a number, found 'wide'"),
    ],
)
def test_a_config_that_contradicts_the_files_is_refused(tiny_albef: Path, tmp_path: Path, section: str, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(str(changed(tiny_albef, tmp_path, config=lambda config: config[section].update(values))))


@pytest.mark.parametrize("without", ["model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_a_folder_without_its_files_is_refused(tiny_albef: Path, tmp_path: Path, without: str) -> None:
    with pytest.raises(UserError, match=r"could not be read|tokens, the model"):
        load_scorer(str(changed(tiny_albef, tmp_path, without=without)))


@pytest.mark.parametrize(("name", "text"), [("tokenizer.json", "{}"), ("tokenizer_config.json", "[]"), ("preprocessor_config.json", "[]")])
def test_files_that_transformers_stumbles_over_are_an_error(tiny_albef: Path, tmp_path: Path, name: str, text: str) -> None:
    folder = changed(tiny_albef, tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=r"changed'?(: \w+\.json)? could not be (read|used)"):
        load_scorer(str(folder))

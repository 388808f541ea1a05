"""Scores of BLIP-2, ViLT and BridgeTower against transformers' own forwards, one pair at a time; and what is refused of each."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, Blip2ForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from eval.errors import UserError
from rerank.scorers.blip.text import clean_caption
from rerank.scorers.blip2 import Blip2Scorer
from rerank.scorers.checkpoint import within_aspect
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import InputLimits, ScorerSettings
from rerank.scorers.supported import CROSS_ENCODER_KINDS
from rerank.scorers.vilt import ViltScorer
from tests.unit.rerank.scorers.tiny_cross_encoders import CAPTIONS, FAMILIES, Family, changed_copy, plain_logits, write_blip2, write_vilt

Noise = Callable[..., Image.Image]
TWO_LOGITS = [FAMILIES["blip-2"], FAMILIES["bridgetower"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small random cross-encoder of every kind."""
    base = tmp_path_factory.mktemp("cross-encoders")
    for kind, family in FAMILIES.items():
        family.write(base / kind)
    return {kind: base / kind for kind in FAMILIES}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def as_read(family: Family, captions: list[str]) -> list[str]:
    return [clean_caption(caption, max_words=50) for caption in captions] if family.kind == "blip-2" else captions


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path], noise: Noise) -> dict[str, np.ndarray]:
    """Of every kind transformers' logits of CAPTIONS with one picture."""
    return {kind: plain_logits(family, folders[kind], noise(1), as_read(family, CAPTIONS)) for kind, family in FAMILIES.items()}


def test_scores_equal_plain_transformers_for_any_chunk_size(
    family: Family, folders: dict[str, Path], plain: dict[str, np.ndarray], noise: Noise
) -> None:
    expected_N = plain[family.kind][:, -1]
    assert np.ptp(expected_N) > 0.1  # random weights that answer alike would prove nothing
    for chunk_size in (1, 2, 64):
        scorer = load_scorer(str(folders[family.kind]))
        scorer.captions_at_once = chunk_size
        scores_N = scorer.score(noise(1), CAPTIONS)
        assert scores_N.dtype == np.float32 and scores_N.shape == (len(CAPTIONS),)
        np.testing.assert_allclose(scores_N, expected_N, atol=1e-5, rtol=0)
    assert scorer.name == family.kind


@pytest.mark.parametrize("size", [(33, 90), (200, 31), (32, 32), (7, 5)])
def test_pictures_of_any_shape_are_read_as_transformers_reads_them(
    family: Family, folders: dict[str, Path], noise: Noise, size: tuple[int, int]
) -> None:
    image = noise(4, *size)
    expected_N = plain_logits(family, folders[family.kind], image, as_read(family, CAPTIONS[:2]))[:, -1]
    np.testing.assert_allclose(load_scorer(str(folders[family.kind])).score(image, CAPTIONS[:2]), expected_N, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", TWO_LOGITS, ids=lambda family: family.kind, indirect=False)
def test_margin_is_column_1_minus_column_0(family: Family, folders: dict[str, Path], plain: dict[str, np.ndarray], noise: Noise) -> None:
    scores_N = load_scorer(str(folders[family.kind]), settings=ScorerSettings(score_kind="margin")).score(noise(1), CAPTIONS)
    np.testing.assert_allclose(scores_N, plain[family.kind][:, 1] - plain[family.kind][:, 0], atol=2e-5, rtol=0)


def test_margin_of_one_logit_is_the_logit(folders: dict[str, Path], noise: Noise) -> None:
    margin, logit = (ViltScorer.load(str(folders["vilt"]), settings=ScorerSettings(score_kind=kind)) for kind in ("margin", "match_logit"))
    assert np.array_equal(margin.score(noise(1), CAPTIONS), logit.score(noise(1), CAPTIONS))


def test_bfloat16_gives_float32_scores_near_float32(family: Family, folders: dict[str, Path], noise: Noise) -> None:
    full_N = load_scorer(str(folders[family.kind])).score(noise(1), CAPTIONS)
    half_N = load_scorer(str(folders[family.kind]), settings=ScorerSettings(precision="bfloat16")).score(noise(1), CAPTIONS)
    assert half_N.dtype == np.float32
    difference = np.abs(full_N - half_N).max()
    assert 1e-6 < difference < 0.1 * np.ptp(full_N)  # it ran in bfloat16, and did not go astray
    assert np.any(half_N != torch.from_numpy(half_N).bfloat16().float().numpy())  # the logits themselves were never rounded to bfloat16


def test_the_picture_is_encoded_once_and_captions_run_in_chunks(family: Family, folders: dict[str, Path], noise: Noise) -> None:
    scorer = load_scorer(str(folders[family.kind]))
    scorer.captions_at_once = 4
    model = scorer._model
    pictures, texts = [], []
    if family.kind == "vilt":
        once, words = model.vilt.embeddings.patch_embeddings, model.vilt.embeddings.text_embeddings
    elif family.kind == "blip-2":
        once, words = model.get_submodule(family.vision_tower), model.embeddings
    else:
        once, words = model.get_submodule(family.vision_tower), model.bridgetower.text_model.embeddings
    once.register_forward_hook(lambda module, args, output: pictures.append(1))
    words.register_forward_hook(lambda module, args, output: texts.append(tuple(output.shape[:2])))
    scorer.score(noise(1), CAPTIONS)
    assert len(pictures) == 1
    assert [rows for rows, _ in texts] == [4, 4, 1]
    lengths = [length for _, length in texts]
    assert lengths == sorted(lengths) and lengths[0] < lengths[1] <= lengths[2]  # shortest first, each as long as its longest
    assert lengths[2] == family.max_tokens + (6 if family.kind == "blip-2" else 0)  # with the queries before the words


def test_blip2_computes_keys_of_the_picture_once_per_batch(folders: dict[str, Path], noise: Noise) -> None:
    scorer = Blip2Scorer.load(str(folders["blip-2"]))
    scorer.captions_at_once = 4
    shapes = []
    keys = scorer._model.qformer.encoder.layer[0].crossattention.attention.key
    keys.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[:2])))
    scorer.score(noise(1), CAPTIONS)
    assert shapes == [(1, 17)] * 3


def test_no_captions_no_scores_and_equal_captions_equal_bits(family: Family, folders: dict[str, Path], noise: Noise) -> None:
    scorer = load_scorer(str(folders[family.kind]))
    assert scorer.score(noise(1), []).shape == (0,)
    scores_N = scorer.score(noise(1), ["a dog", *CAPTIONS, "a dog"])
    assert scores_N[0] == scores_N[-1]
    for mode in ("L", "RGBA", "P"):
        image = noise(5).convert(mode)
        assert np.array_equal(scorer.score(image, CAPTIONS[:2]), scorer.score(image.convert("RGB"), CAPTIONS[:2]))


def test_a_word_the_model_has_no_row_for_reads_as_unknown(folders: dict[str, Path], noise: Noise) -> None:
    """BLIP-2's processor adds <image> behind the last word, beyond the model's table."""
    scorer = Blip2Scorer.load(str(folders["blip-2"]))
    assert len(scorer._checkpoint.tokenizer) == scorer._model.config.qformer_config.vocab_size
    scorer._checkpoint.tokenizer.add_tokens(["<video>"], special_tokens=True)
    scores_N = scorer.score(noise(1), ["a <video> dog", "a zebra dog"])
    assert scores_N[0] == scores_N[1]


def test_reach(folders: dict[str, Path], tmp_path: Path) -> None:
    reads = {kind: load_scorer(str(folder)).reads for kind, folder in folders.items()}
    assert reads == {
        "blip-2": InputLimits(32, 32, 35),
        "vilt": InputLimits(32, 32, 40, keeps_aspect=True),
        "bridgetower": InputLimits(32, 32, 50),
    }
    assert str(reads["vilt"]) == "pictures with a shorter side of 32 pixels, captions of up to 40 tokens"
    write_blip2(tmp_path / "short", max_position_embeddings=20)
    assert load_scorer(str(tmp_path / "short")).reads.max_tokens == 20


def test_fingerprint_follows_what_changes_scores_and_nothing_else(
    family: Family, folders: dict[str, Path], tmp_path: Path, noise: Noise
) -> None:
    folder = str(folders[family.kind])
    scorer = load_scorer(folder)
    fingerprint = scorer.fingerprint
    again = load_scorer(folder)
    again.captions_at_once = 2
    again.score(noise(1), CAPTIONS)
    assert again.fingerprint == fingerprint
    others = {load_scorer(folder, settings=ScorerSettings(precision="bfloat16")).fingerprint}
    others.add(load_scorer(folder, settings=ScorerSettings(score_kind="margin")).fingerprint)
    changed = changed_copy(folders[family.kind], tmp_path / "changed", weights=lambda tensors: tensors[f"{family.head}.bias"].add_(1e-3))
    others.add(load_scorer(str(changed)).fingerprint)
    with pytest.MonkeyPatch.context() as patched:  # another constant of the class
        patched.setattr(type(scorer), "fixed", {"max_words": 9})
        others.add(load_scorer(folder).fingerprint)
    assert len(others - {fingerprint}) == 4


def test_blip2_with_image_tokens_in_its_vocabulary_scores_the_same(folders: dict[str, Path], tmp_path: Path, noise: Noise) -> None:
    """A config with `image_token_index`, as newer files have: transformers then wants a placeholder per query before the words."""
    source, image = folders["blip-2"], noise(1)
    folder = changed_copy(source, tmp_path / "tokens", config=lambda config: config.update(image_token_index=28))
    scores_N = load_scorer(str(folder)).score(image, CAPTIONS[:2])
    assert np.array_equal(scores_N, load_scorer(str(source)).score(image, CAPTIONS[:2]))
    model = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.image_token_index == 28
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), BlipImageProcessorPil.from_pretrained(folder)
    words = tokenizer(clean_caption(CAPTIONS[0]), return_tensors="pt", return_token_type_ids=False)
    ids = torch.cat([torch.full((1, 6), 28), words["input_ids"]], dim=1)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        plain = model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), use_image_text_matching_head=True)
    np.testing.assert_allclose(scores_N[0], plain.logits_per_image[0, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("crop", ["absent", None])
def test_bridgetower_crops_to_size_where_its_files_name_no_crop(folders: dict[str, Path], tmp_path: Path, noise: Noise, crop: None) -> None:
    folder = changed_copy(folders["bridgetower"], tmp_path / "no-crop")
    for path in folder.glob("p*processor_config.json"):  # since transformers 5 within processor_config.json
        values = json.loads(path.read_text())
        inner = values.get("image_processor", values)
        inner.pop("crop_size", None)
        inner.update({} if crop == "absent" else {"crop_size": crop})
        path.write_text(json.dumps(values))
    scores_N = load_scorer(str(folder)).score(noise(1), CAPTIONS)
    assert np.array_equal(scores_N, load_scorer(str(folders["bridgetower"])).score(noise(1), CAPTIONS))


# ViLT's patches


def test_vilt_is_deterministic_and_leaves_the_random_state_alone(folders: dict[str, Path], noise: Noise) -> None:
    scorer = load_scorer(str(folders["vilt"]))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first_N = scorer.score(noise(1, 90, 60), CAPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert np.array_equal(scorer.score(noise(1, 90, 60), CAPTIONS), first_N)


def test_vilt_reads_all_patches_where_transformers_draws_some_at_random(folders: dict[str, Path], tmp_path: Path, noise: Noise) -> None:
    family, image = FAMILIES["vilt"], noise(1, 90, 60)
    write_vilt(tmp_path / "drawing", max_image_length=5)  # the same weights: the same seed
    drawn = [plain_logits(family, tmp_path / "drawing", image, CAPTIONS[:2]) for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3  # transformers' own scores change from call to call
    all_N = load_scorer(str(folders["vilt"])).score(image, CAPTIONS[:2])
    assert np.array_equal(load_scorer(str(tmp_path / "drawing")).score(image, CAPTIONS[:2]), all_N)


@pytest.mark.parametrize("kind", ["vilt", "bridgetower"])
@pytest.mark.parametrize("size", [(400, 3), (2, 900)])
def test_pictures_too_thin_for_transformers_are_stretched(folders: dict[str, Path], noise: Noise, kind: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="height=0|width=0"):
        plain_logits(FAMILIES[kind], folders[kind], noise(1, *size), CAPTIONS[:1])
    assert np.isfinite(load_scorer(str(folders[kind])).score(noise(1, *size), CAPTIONS)).all()


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400))
def test_only_pictures_that_would_vanish_are_stretched(width: int, height: int) -> None:
    processor = ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8)
    image = Image.new("RGB", (width, height))
    stretched = within_aspect(image, processor)
    assert min(processor(images=stretched, return_tensors="pt")["pixel_values"].shape[-2:]) >= 8
    if stretched is not image:
        assert max(stretched.size) == max(image.size)
        with pytest.raises(ValueError):
            processor(images=image, return_tensors="pt")


# What must be true of a checkpoint


def test_missing_head_is_refused_by_name(family: Family, folders: dict[str, Path], tmp_path: Path) -> None:
    name = f"{family.head}.weight"
    folder = changed_copy(folders[family.kind], tmp_path / "headless", weights=lambda tensors: tensors.pop(name))
    with pytest.raises(
        UserError, match=rf"lacks 1 weights of {family.model_class.__name__}.*{name}.*{CROSS_ENCODER_KINDS[family.kind].example}"
    ):
        load_scorer(str(folder))


def test_weights_that_are_not_finite_are_refused(family: Family, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed_copy(
        folders[family.kind], tmp_path / "nan", weights=lambda tensors: tensors[f"{family.head}.bias"].fill_(float("nan"))
    )
    with pytest.raises(UserError, match=rf"not finite: {family.head}\.bias"):
        load_scorer(str(folder))


def widened(section: str | None, width: int, heads: int) -> Callable[[dict], None]:
    def change(config: dict) -> None:
        (config[section] if section else config).update(hidden_size=width, num_attention_heads=heads)

    return change


def enlarged(section: str | None, **values: int) -> Callable[[dict], None]:
    return lambda config: (config[section] if section else config).update(values)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("blip-2", widened("qformer_config", 768, 8), r"qformer_config\.num_attention_heads.*expected 12.*found 8"),
        ("blip-2", widened("vision_config", 1408, 8), r"vision_config\.num_attention_heads.*expected 16.*found 8"),
        ("vilt", widened(None, 768, 8), r"^num_attention_heads.*expected 12.*found 8"),
        ("bridgetower", widened("text_config", 1024, 8), r"text_config\.num_attention_heads.*expected 16.*found 8"),
        ("blip-2", enlarged("vision_config", image_size=64), r"32 x 32 pixels where vision_config\.image_size is 64 x 64"),
        ("bridgetower", enlarged("vision_config", image_size=64), r"32 x 32 pixels where vision_config\.image_size is 64 x 64"),
        ("blip-2", enlarged("qformer_config", vocab_size=500), "tokens where the model has 500"),
        ("vilt", enlarged(None, vocab_size=500), "tokens where the model has 500"),
        ("bridgetower", enlarged("text_config", vocab_size=500), "tokens where the model has 500"),
        ("blip-2", enlarged("qformer_config", use_qformer_text_input=False), "use_qformer_text_input.*expected true"),
    ],
)
def test_a_config_that_contradicts_the_files_is_refused(
    folders: dict[str, Path], tmp_path: Path, kind: str, change: Callable[[dict], None], message: str
) -> None:
    folder = changed_copy(folders[kind], tmp_path / "contradicting", config=change)
    with pytest.raises(UserError, match=message):
        load_scorer(str(folder))

"""BLIP's scores against transformers' own forward, one pair at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, BlipForImageTextRetrieval

from eval.errors import UserError
from rerank.scorers.blip.checkpoint import BlipCheckpoint, load_blip
from rerank.scorers.blip.scorer import BlipScorer
from rerank.scorers.blip.text import clean_caption
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from tests.unit.rerank.scorers.tiny_cross_encoders import CAPTIONS


def plain_scores(folder: Path, image, captions: list[str], *, enc: bool, model=None) -> np.ndarray:
    """float64 copy of transformers' itm_score, shape (N, 2): the processor and a whole forward for each pair, nothing shared."""
    processor = AutoProcessor.from_pretrained(folder)
    model = model or BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for caption in captions:
        text = clean_caption(caption)
        inputs = processor(images=image, text=[text], return_tensors="pt", padding="max_length", truncation=True, max_length=35)
        if enc:
            inputs["input_ids"][:, 0] = model.config.text_config.vocab_size - 1
        with torch.no_grad():
            rows.append(model(**inputs).itm_score[0].double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("enc", [True, False])
def test_scores_equal_plain_transformers_for_any_chunk_size(tiny_blip: Path, noise, enc: bool) -> None:
    image = noise(1)
    plain = plain_scores(tiny_blip, image, CAPTIONS, enc=enc)[:, 1]
    assert np.ptp(plain) > 0.1  # random weights that answer alike would prove nothing
    for chunk_size in (1, 2, 3, 64):
        checkpoint = load_blip(str(tiny_blip))
        scorer = BlipScorer(checkpoint if enc else replace(checkpoint, enc_token_id=None))
        scorer.captions_at_once = chunk_size
        scores = scorer.score(image, CAPTIONS)
        assert scores.dtype == np.float32 and scores.shape == (len(CAPTIONS),)
        np.testing.assert_allclose(scores, plain, atol=1e-5, rtol=0)


def test_scores_equal_plain_transformers_at_base_size(base_blip: tuple, noise) -> None:
    folder, model = base_blip
    processor = AutoProcessor.from_pretrained(folder)
    checkpoint = BlipCheckpoint(model, processor.image_processor, processor.tokenizer, model.config.text_config.vocab_size - 1)
    image, captions = noise(2), CAPTIONS[:3]
    for enc in (True, False):
        plain = plain_scores(folder, image, captions, enc=enc, model=model)[:, 1]
        assert np.ptp(plain) > 1e-3
        scorer = BlipScorer(checkpoint if enc else replace(checkpoint, enc_token_id=None), device="cpu")
        scorer.captions_at_once = 2
        scores = scorer.score(image, captions)
        np.testing.assert_allclose(scores, plain, atol=1e-5, rtol=0)


def test_margin_is_column_1_minus_column_0(tiny_blip: Path, noise) -> None:
    plain = plain_scores(tiny_blip, noise(3), CAPTIONS, enc=True)
    scores = BlipScorer.load(str(tiny_blip), settings=ScorerSettings(score_kind="margin")).score(noise(3), CAPTIONS)
    np.testing.assert_allclose(scores, plain[:, 1] - plain[:, 0], atol=2e-5, rtol=0)
    probability = torch.from_numpy(plain).softmax(dim=1)[:, 1].numpy()
    assert np.array_equal(np.argsort(scores[[0, 1, 2, 3, 5]]), np.argsort(probability[[0, 1, 2, 3, 5]]))


def test_a_score_depends_on_image_and_caption_but_not_on_company(tiny_blip: Path, noise) -> None:
    scorer = load_scorer(str(tiny_blip))
    together = scorer.score(noise(1), CAPTIONS)
    alone = np.concatenate([scorer.score(noise(1), [caption]) for caption in CAPTIONS])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    assert np.abs(together - scorer.score(noise(2), CAPTIONS)).max() > 0.05
    assert np.array_equal(together, scorer.score(noise(1), CAPTIONS))


def test_captions_that_read_alike_score_the_same_bits(tiny_blip: Path, noise) -> None:
    scores = load_scorer(str(tiny_blip)).score(noise(1), ["a dog", *CAPTIONS, "A  dog!", "a dog."])
    assert scores[0] == scores[-2] == scores[-1]


def test_an_image_is_computed_once_and_no_token_is_padding(tiny_blip: Path, noise) -> None:
    checkpoint = load_blip(str(tiny_blip))
    scorer, rows = BlipScorer(checkpoint, device="cpu"), {}
    scorer.captions_at_once = 4
    text_layers = checkpoint.model.text_encoder.encoder.layer
    watched = {"image": checkpoint.model.vision_model.encoder.layers[0].self_attn.qkv, "keys": text_layers[0].crossattention.self.key}
    watched |= {"inner": text_layers[0].intermediate.dense, "last": text_layers[-1].intermediate.dense}
    for name, module in watched.items():
        rows[name] = []
        module.register_forward_hook(lambda module, inputs, output, name=name: rows[name].append(output.shape[:-1].numel()))
    scorer.score(noise(1), CAPTIONS)
    lengths = sorted(map(len, checkpoint.token_ids(CAPTIONS)))
    assert rows["image"] == rows["keys"] == [(32 // 8) ** 2 + 1]
    assert rows["inner"] == [sum(lengths[:4]), sum(lengths[4:8]), sum(lengths[8:])]
    assert rows["last"] == [4, 4, 1]  # of the last layer the first token alone


def test_no_captions_no_scores(tiny_blip: Path, noise) -> None:
    assert load_scorer(str(tiny_blip)).score(noise(1), []).shape == (0,)


def test_grey_and_transparent_pictures_score_as_their_rgb(tiny_blip: Path, noise) -> None:
    scorer = load_scorer(str(tiny_blip))
    for mode in ("L", "RGBA", "P"):
        image = noise(5).convert(mode)
        assert np.array_equal(scorer.score(image, CAPTIONS), scorer.score(image.convert("RGB"), CAPTIONS))


def test_bfloat16_gives_float32_scores_near_float32(tiny_blip: Path, noise) -> None:
    full = BlipScorer.load(str(tiny_blip)).score(noise(1), CAPTIONS)
    half = BlipScorer.load(str(tiny_blip), settings=ScorerSettings(precision="bfloat16")).score(noise(1), CAPTIONS)
    assert half.dtype == np.float32
    difference = np.abs(full - half).max()
    assert 1e-6 < difference < 0.2  # it ran in bfloat16, and did not go astray
    assert np.any(half != torch.from_numpy(half).bfloat16().float().numpy())  # the logits themselves were never rounded to bfloat16


def test_a_half_precision_checkpoint_is_scored_in_float32(changed_blip, noise) -> None:
    folder = changed_blip(
        weights=lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}),
        config=lambda config: config.update(dtype="float16"),
    )
    assert {parameter.dtype for parameter in load_blip(str(folder)).model.parameters()} == {torch.float32}
    assert np.isfinite(BlipScorer.load(str(folder)).score(noise(1), CAPTIONS)).all()


def test_fingerprint_follows_what_changes_scores_and_nothing_else(tiny_blip: Path, changed_blip, noise) -> None:
    fingerprint = load_scorer(str(tiny_blip)).fingerprint
    again = load_scorer(str(tiny_blip))
    again.score(noise(1), CAPTIONS)
    assert again.fingerprint == fingerprint
    for settings in (ScorerSettings(score_kind="margin"), ScorerSettings(precision="bfloat16")):
        assert BlipScorer.load(str(tiny_blip), settings=settings).fingerprint != fingerprint
    folder = changed_blip(weights=lambda tensors: tensors["itm_head.bias"].add_(1e-3))
    assert load_scorer(str(folder)).fingerprint != fingerprint


def test_the_tokenizer_may_come_from_vocab_txt_alone(tiny_blip: Path, changed_blip, noise) -> None:
    folder = changed_blip(without="tokenizer.json")
    assert not (folder / "tokenizer.json").exists()
    assert np.array_equal(load_scorer(str(folder)).score(noise(1), CAPTIONS), load_scorer(str(tiny_blip)).score(noise(1), CAPTIONS))


def test_a_vocabulary_without_enc_is_scored_without(changed_blip, noise) -> None:
    def shrink(tensors: dict) -> None:
        name = "text_encoder.embeddings.word_embeddings.weight"
        tensors[name] = tensors[name][:-2].clone()

    def drop_two(config: dict) -> None:
        config["text_config"]["vocab_size"] -= 2

    folder = changed_blip(config=drop_two, weights=shrink)
    scorer = BlipScorer.load(str(folder))
    assert load_blip(str(folder)).enc_token_id is None
    plain = plain_scores(folder, noise(1), CAPTIONS, enc=False)[:, 1]
    np.testing.assert_allclose(scorer.score(noise(1), CAPTIONS), plain, atol=1e-5, rtol=0)


# What must be true of a checkpoint


def test_missing_head_is_refused_by_name(changed_blip) -> None:
    folder = changed_blip(weights=lambda tensors: [tensors.pop(name) for name in ("itm_head.weight", "itm_head.bias")])
    with pytest.raises(UserError, match=r"lacks 2 weights.*itm_head\.bias, itm_head\.weight"):
        load_scorer(str(folder))


def test_any_missing_weight_is_refused(changed_blip) -> None:
    name = "text_encoder.encoder.layer.1.crossattention.self.key.weight"
    with pytest.raises(UserError, match="lacks 1 weights.*crossattention.self.key.weight"):
        load_scorer(str(changed_blip(weights=lambda tensors: tensors.pop(name))))


def test_a_weight_of_another_shape_is_refused(changed_blip) -> None:
    with pytest.raises(UserError, match=r"1 of another shape.*itm_head\.weight"):
        load_scorer(str(changed_blip(weights=lambda tensors: tensors.update({"itm_head.weight": torch.zeros(3, 32)}))))


def test_weights_that_are_not_finite_are_refused(changed_blip) -> None:
    with pytest.raises(UserError, match=r"not finite: itm_head\.bias"):
        load_scorer(str(changed_blip(weights=lambda tensors: tensors["itm_head.bias"].fill_(float("nan")))))


@pytest.mark.parametrize("heads", [8, None])  # None: no such key, which transformers reads as 8
def test_a_768_wide_text_tower_with_other_than_12_heads_is_refused(changed_blip, heads: int | None) -> None:
    def widen(config: dict) -> None:
        config["text_config"].update(hidden_size=768, num_attention_heads=heads)
        if heads is None:
            del config["text_config"]["num_attention_heads"]

    with pytest.raises(UserError, match=r"text_config\.num_attention_heads.*expected 12.*found 8"):
        load_scorer(str(changed_blip(config=widen)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"is_decoder": False}}, "is_decoder"),
        ({"vision_config": {"image_size": 64}}, r"32 x 32 pixels where vision_config.image_size is 64 x 64"),
        ({"vision_config": {"hidden_size": 768, "num_attention_heads": 8}}, r"vision_config\.num_attention_heads.*expected 12.*found 8"),
        ({"text_config": {"vocab_size": 500}}, "tokens where the model has 500"),
    ],
)
def test_a_config_that_contradicts_the_files_is_refused(changed_blip, change: dict, message: str) -> None:
    folder = changed_blip(config=lambda config: [config[tower].update(values) for tower, values in change.items()])
    with pytest.raises(UserError, match=message):
        load_scorer(str(folder))


def test_a_folder_without_tokenizer_files_is_refused(changed_blip) -> None:
    folder = changed_blip(without="vocab.txt")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_scorer(str(folder))


@pytest.mark.parametrize("without", ["model.safetensors", "*processor*"])
def test_a_folder_without_its_files_is_refused(changed_blip, without: str) -> None:
    with pytest.raises(UserError, match="could not be read"):
        load_scorer(str(changed_blip(without=without)))


def test_a_torn_weights_file_and_an_empty_pickle_are_refused(changed_blip) -> None:
    folder = changed_blip()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="could not be read"):
        load_scorer(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: expected tensors by name"):
        load_scorer(str(folder))

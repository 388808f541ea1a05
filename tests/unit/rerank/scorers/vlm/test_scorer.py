"""CrossEncoders that take images: told from those that do not by their files, and scored as plain transformers would."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from eval.errors import UserError
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from rerank.scorers.supported import check_cross_encoder
from rerank.scorers.vlm.scorer import VlmScorer

WORDS = ["<pad>", "<unk>", "<image>", "yes", "no", "query", "document", "system", ":", "a", "red", "dog", "cat", "judge", "well"]
TEMPLATE = (
    "{% for m in messages %} {{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %} <image> {% else %} {{ c['text'] }} {% endif %}{% endfor %}{% endif %}{% endfor %} :"
)
CAPTIONS = ["a red dog", "cat", "a dog a cat a red red dog", "a red dog", "zebra"]
has_library = importlib.util.find_spec("sentence_transformers") is not None
needs_library = pytest.mark.skipif(not has_library, reason="sentence-transformers is not installed (the extra rerank-vlm)")


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as sentence-transformers 6.2 saves a generative reranker, over a two-layer LLaVA with random weights."""
    folder = tmp_path_factory.mktemp("vlm") / "tiny"
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": ["<image>"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", model_max_length=96, **special)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=128, pad_token_id=0, bos_token_id=None, eos_token_id=None, **sizes)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=2, image_seq_length=16)
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.2 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    write_library_files(folder, ["text", "image", "message"])
    return folder


def write_library_files(folder: Path, modalities: list[str], model_type: str = "CrossEncoder") -> None:
    package = "sentence_transformers"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_LogitScore", "type": f"{package}.cross_encoder.modules.logit_score.LogitScore"},
    ]
    (folder / "1_LogitScore").mkdir(exist_ok=True)
    forward = {"method": "forward", "method_output_name": "logits"}
    config = {modality: forward | ({"format": "structured"} if modality == "message" else {}) for modality in modalities}
    for name, content in {
        "modules.json": modules,
        "1_LogitScore/config.json": {"true_token_id": 3, "false_token_id": 4},
        "config_sentence_transformers.json": {"model_type": model_type, "prompts": {}, "default_prompt_name": None},
        "sentence_bert_config.json": {
            "transformer_task": "any-to-any",
            "modality_config": config,
            "module_output_name": "causal_logits",
        },
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def plain_scores(folder: Path, image, captions: list[str]) -> np.ndarray:
    """Yes less no after the two, by transformers alone: one pair at a time, the template spelt out word by word."""
    processor = LlavaProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for caption in captions:
        inputs = processor(images=[image.convert("RGB")], text=f"query : {caption} document : <image> :", return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1].double()
        scores.append(float(logits[3] - logits[4]))
    return np.array(scores)


@needs_library
def test_scores_equal_plain_transformers(tiny_vlm: Path, noise, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain_scores(tiny_vlm, noise(1), CAPTIONS)
    assert np.ptp(expected) > 0.1  # random weights that answer alike would prove nothing
    for pairs_at_once in (1, 2, 8):
        monkeypatch.setattr("rerank.scorers.vlm.scorer.PAIRS_AT_ONCE", pairs_at_once)
        scores = VlmScorer.load(str(tiny_vlm), device="cpu").score(noise(1), CAPTIONS)
        assert scores.dtype == np.float32 and scores.shape == (len(CAPTIONS),)
        np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)
        assert scores[0] == scores[3]


@needs_library
def test_it_is_loaded_by_its_kind_and_says_what_it_is(tiny_vlm: Path, noise) -> None:
    scorer = load_scorer(str(tiny_vlm), device="cpu")
    assert (scorer.name, str(scorer.reads)) == ("vlm", "pictures at their own size, captions of up to 96 tokens")
    assert scorer.score(noise(1), []).shape == (0,)
    assert np.abs(scorer.score(noise(1), CAPTIONS) - scorer.score(noise(2), CAPTIONS)).max() > 0.01


@needs_library
def test_bfloat16_gives_logits_that_were_never_rounded_to_it(tiny_vlm: Path, noise) -> None:
    full = load_scorer(str(tiny_vlm), device="cpu").score(noise(1), CAPTIONS)
    half = load_scorer(str(tiny_vlm), device="cpu", settings=ScorerSettings(precision="bfloat16")).score(noise(1), CAPTIONS)
    assert 1e-6 < np.abs(full - half).max() < 0.3
    assert np.any(half != torch.from_numpy(half).bfloat16().float().numpy())


@needs_library
def test_fingerprint_follows_what_changes_scores_and_nothing_else(tiny_vlm: Path, tmp_path: Path, noise) -> None:
    scorer = load_scorer(str(tiny_vlm), device="cpu")
    scorer.score(noise(1), CAPTIONS)
    changes = [{"score_kind": "margin"}, {"precision": "bfloat16"}]
    same = load_scorer(str(tiny_vlm), device="cpu").fingerprint
    others = [load_scorer(str(tiny_vlm), device="cpu", settings=ScorerSettings(**change)).fingerprint for change in changes]
    other_words = copied(tiny_vlm, tmp_path / "words")
    (other_words / "chat_template.jinja").write_text(TEMPLATE + " judge")
    other_weights = copied(tiny_vlm, tmp_path / "weights", change=lambda tensors: next(iter(tensors.values())).add_(1e-3))
    others += [load_scorer(str(folder), device="cpu").fingerprint for folder in (other_words, other_weights)]
    assert scorer.fingerprint == same
    assert len({same, *others}) == 1 + len(others)


def copied(folder: Path, place: Path, change=None) -> Path:
    """A copy of the reranker, with its tensors changed."""
    (place / "1_LogitScore").mkdir(parents=True)
    for path in (*folder.glob("*.*"), *folder.glob("1_LogitScore/*")):
        (place / path.relative_to(folder)).write_bytes(path.read_bytes())
    if change:
        tensors = load_file(place / "model.safetensors")
        change(tensors)
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return place


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("language_model.lm_head.weight"), r"lacks 1 weights.*lm_head\.weight"),
        (lambda tensors: tensors["language_model.lm_head.weight"].fill_(float("inf")), r"not finite.*lm_head\.weight"),
    ],
)
def test_weights_that_would_be_random_or_are_broken_are_refused(tiny_vlm: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(str(copied(tiny_vlm, tmp_path / "changed", change)), device="cpu")


@needs_library
def test_a_head_without_its_settings_is_refused(tiny_vlm: Path, tmp_path: Path) -> None:
    """As Qwen3-VL-Reranker-8B was published at first: the path of the head in modules.json led nowhere."""
    folder = copied(tiny_vlm, tmp_path / "changed")
    (folder / "1_LogitScore" / "config.json").unlink()
    with pytest.raises(UserError, match=r"could not load.*true_token_id"):
        load_scorer(str(folder), device="cpu")


@needs_library
def test_a_pickle_is_not_read(tiny_vlm: Path, tmp_path: Path) -> None:
    folder = copied(tiny_vlm, tmp_path / "changed")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"could not load.*safetensors"):
        load_scorer(str(folder), device="cpu")


@pytest.mark.skipif(has_library, reason="sentence-transformers is installed")
def test_without_the_library_the_message_says_how_to_have_it(tiny_vlm: Path) -> None:
    with pytest.raises(UserError, match=r"not installed here: pip install .*\[rerank-vlm\]"):
        load_scorer(str(tiny_vlm))


# The guard, which needs no library


def test_the_guard_accepts_one_that_takes_images(tiny_vlm: Path) -> None:
    assert check_cross_encoder(str(tiny_vlm)) == "vlm"


def test_modalities_of_several_parts_count(tiny_vlm: Path, tmp_path: Path) -> None:
    folder = copied(tiny_vlm, tmp_path / "changed")
    write_library_files(folder, ["text", "image,text"])
    assert check_cross_encoder(str(folder)) == "vlm"


@pytest.mark.parametrize(
    ("modalities", "model_type", "message"),
    [
        (["text"], "CrossEncoder", r"text-text reranker \(a CrossEncoder of sentence-transformers that takes text only\)"),
        (["text", "message"], "CrossEncoder", "text-text reranker"),
        (["text", "image"], "SentenceTransformer", "not supported"),
    ],
)
def test_the_guard_refuses_other_files_of_the_library(
    tiny_vlm: Path, tmp_path: Path, modalities: list, model_type: str, message: str
) -> None:
    folder = copied(tiny_vlm, tmp_path / "changed")
    write_library_files(folder, modalities, model_type)
    with pytest.raises(UserError, match=message):
        check_cross_encoder(str(folder))


def test_a_vlm_without_the_librarys_files_and_a_text_cross_encoder_are_refused(tiny_vlm: Path, tmp_path: Path) -> None:
    folder = copied(tiny_vlm, tmp_path / "plain")
    (folder / "config_sentence_transformers.json").unlink()
    with pytest.raises(UserError, match=r"not supported \(LlavaForConditionalGeneration\)"):
        check_cross_encoder(str(folder))
    text = tmp_path / "text"
    BertForSequenceClassification(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=1)
    ).save_pretrained(text)
    write_library_files(text, ["text"])
    with pytest.raises(UserError, match="text-text reranker"):
        check_cross_encoder(str(text))

"""Models that are no cross-encoder are refused before any weight is read, given by name or as a folder."""

import json
from pathlib import Path

import pytest
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BlipConfig,
    BlipForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from eval.encoder import model_files
from eval.errors import UserError
from rerank.scorers import supported as supported
from rerank.scorers.load import _SCORERS, load_scorer
from rerank.scorers.supported import ALBEF, CROSS_ENCODER_KINDS, VLM, check_cross_encoder, expected


def tiny_bert() -> BertConfig:
    return BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=1)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(supported, "model_folder", refuse)


@pytest.mark.parametrize(
    "name",
    [
        "cross-encoder/ms-marco-MiniLM-L-6-v2",
        "cross-encoder/ms-marco-TinyBERT-L-2-v2",
        "cross-encoder/stsb-roberta-base",
        "BAAI/bge-reranker-v2-m3",
        "BAAI/bge-reranker-large",
        "mixedbread-ai/mxbai-rerank-base-v1",
        "jinaai/jina-reranker-v2-base-multilingual",
        "jinaai/jina-reranker-v1-turbo-en",
        "Alibaba-NLP/gte-multilingual-reranker-base",
        "Alibaba-NLP/gte-reranker-modernbert-base",
        "Qwen/Qwen3-Reranker-0.6B",
        "castorini/monot5-base-msmarco",
        "gpustack/bge-reranker-v2-m3-GGUF",
        "ibm-granite/granite-embedding-reranker-english-r2",
        "castorini/rank_zephyr_7b_v1_full",
    ],
)
def test_text_rerankers_are_refused_by_name_before_any_download(no_network: None, name: str) -> None:
    with pytest.raises(UserError) as refusal:
        load_scorer(name)
    message = str(refusal.value)
    assert name in message and "text-text reranker" in message and "never sees a picture" in message
    assert "Salesforce/blip-itm-base-coco" in message
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("colbert-ir/colbertv2.0", "ColBERT .*word by word and never sees a picture"),
        ("jinaai/jina-colbert-v2", "ColBERT"),
        ("lightonai/GTE-ModernColBERT-v1", "ColBERT"),
        ("someone/blip-itm-GGUF", "llama.cpp"),
    ],
)
def test_colbert_and_gguf_are_refused_by_name_before_any_download(no_network: None, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"{reason}.*blip-itm-base-coco"):
        load_scorer(name)


@pytest.mark.parametrize(
    "name",
    [
        "Salesforce/blip-itm-base-coco",
        "Salesforce/blip-itm-large-flickr",
        "Qwen/Qwen3-VL-Reranker-2B",
        "jinaai/jina-reranker-m0",
        "vidore/colqwen2-v1.0",
    ],
)
def test_models_that_read_images_are_not_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    asked: list[str] = []
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip", "architectures": ["BlipForImageTextRetrieval"]}))

    def answer(model: str, setting: str) -> Path:
        asked.append(model)
        return tmp_path

    for module in (supported, model_files):
        monkeypatch.setattr(module, "model_folder", answer)
    check_cross_encoder(name)
    assert set(asked) == {name}


def test_a_text_cross_encoder_folder_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "blip-itm-base-coco"
    BertForSequenceClassification(tiny_bert()).save_pretrained(folder)
    with pytest.raises(UserError, match=r"text-text reranker \(BertForSequenceClassification\).*never sees a picture"):
        load_scorer(str(folder))


@pytest.mark.parametrize("mark", ["config.json", "modules.json", "config_sentence_transformers.json"])
def test_a_folder_saved_by_sentence_transformers_as_a_cross_encoder_is_refused(tmp_path: Path, mark: str) -> None:
    """Whatever class is beneath, here a language model's, as in Qwen3-Reranker: only the library's own mark tells."""
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    marks = {
        "config.json": config | {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1.0"}},
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.cross_encoder.modules.CausalScoreHead"}],
        "config_sentence_transformers.json": {"model_type": "CrossEncoder", "__version__": {"sentence_transformers": "5.4.0"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"another kind \(Qwen3ForCausalLM\)"):
        load_scorer(str(tmp_path))
    (tmp_path / mark).write_text(json.dumps(marks[mark]))
    with pytest.raises(UserError, match=r"text-text reranker \(a CrossEncoder of sentence-transformers, Qwen3ForCausalLM\)"):
        load_scorer(str(tmp_path))


def test_a_folder_named_like_a_text_reranker_is_recognised_by_its_config(tiny_blip: Path, tmp_path: Path, noise) -> None:
    folder = tmp_path / "ms-marco-MiniLM"
    folder.symlink_to(tiny_blip)
    assert load_scorer(str(folder)).score(noise(0), ["a dog"]).shape == (1,)


def test_a_bi_encoder_is_refused_as_a_reranker(tmp_path: Path) -> None:
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(text_config={**tower, "vocab_size": 20}, vision_config={**tower, "image_size": 16, "patch_size": 8})
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    with pytest.raises(UserError, match=r"bi-encoder \(SiglipModel\).*first stage.*--model"):
        load_scorer(str(tmp_path / "siglip"))


def test_a_captioner_is_refused(tmp_path: Path) -> None:
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(text_config={**tower, "vocab_size": 20}, vision_config={**tower, "image_size": 16, "patch_size": 8})
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "captioner")
    with pytest.raises(UserError, match="writes captions and holds no image-text matching head"):
        load_scorer(str(tmp_path / "captioner"))


def test_blip_model_is_refused_with_its_reason(changed_blip) -> None:
    with pytest.raises(UserError, match=r"logits_per_image.*random \(transformers#28034\)"):
        load_scorer(str(changed_blip(config=lambda config: config.update(architectures=["BlipModel"]))))


def test_a_config_that_names_no_architecture_is_recognised_by_its_weights(changed_blip) -> None:
    folder = changed_blip(config=lambda config: config.pop("architectures"), weights=lambda tensors: tensors.pop("itm_head.weight"))
    check_cross_encoder(str(folder))
    with pytest.raises(UserError, match=r"itm_head\.weight"):
        load_scorer(str(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "sees no picture"),
        ({"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}, "text-text reranker"),
        ({"model_type": "instructblip", "vision_config": {}, "architectures": ["InstructBlipModel"]}, "not supported .InstructBlip"),
        ({"model_type": "flava", "image_config": {}, "architectures": ["FlavaModel"]}, "not supported"),
        ({"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}, "writes captions.*Blip2ForImageTextRetrieval, such"),
        ({"model_type": "blip-2", "architectures": ["Blip2TextModelWithProjection"]}, "embeds texts alone.*blip2-itm-vit-g"),
        ({"model_type": "vilt", "architectures": ["ViltForQuestionAnswering"]}, "answers questions.*rank_output.*vilt-b32-finetuned-coco"),
        ({"model_type": "vilt", "architectures": ["ViltForImagesAndTextClassification"]}, "compares two pictures"),
        ({"model_type": "vilt", "architectures": ["ViltForTokenClassification"]}, "it is a ViltForTokenClassification, without"),
        ({"model_type": "bridgetower", "architectures": ["BridgeTowerForContrastiveLearning"]}, "compared by cosine.*base-itm-mlm"),
        ({"model_type": "bridgetower", "architectures": ["BridgeTowerModel"]}, "towers alone.*itm_score"),
        ({"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}, "answers questions"),
        ({"model_type": "blip", "architectures": "BlipModel"}, "BlipModel has no matching head"),
        ({"model_type": "blip", "architectures": 3}, "it is a 3, without"),
        ({}, "another kind"),
        ([], "not an object"),
    ],
)
def test_configs_of_other_kinds(tmp_path: Path, config: object, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        check_cross_encoder(str(tmp_path))


def test_what_is_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no config.json"):
        check_cross_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        check_cross_encoder(str(tmp_path))
    with pytest.raises(UserError, match="is a file\\."):
        check_cross_encoder(str(tmp_path / "config.json"))
    for name in ("", "./nowhere", "/nowhere/at/all", "a/b/c", "two words"):
        with pytest.raises(UserError, match="there is no folder"):
            check_cross_encoder(name)


def test_files_next_to_a_missing_config_is_named(tmp_path: Path) -> None:
    weights = tmp_path / "reranker-q8_0.gguf"
    weights.write_bytes(b"GGUF")
    for model in (tmp_path, weights):
        with pytest.raises(UserError, match=r"llama\.cpp \(GGUF\), which is not read here"):
            check_cross_encoder(str(model))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="PEFT adapter alone: merge it into its base"):
        check_cross_encoder(str(tmp_path))


def test_every_kind_names_a_class_of_transformers_and_has_a_scorer() -> None:
    assert set(_SCORERS) == {*CROSS_ENCODER_KINDS, ALBEF, VLM}
    for model_type, kind in CROSS_ENCODER_KINDS.items():
        for name in (kind.architecture, *kind.siblings):
            assert getattr(transformers, name).config_class.model_type.startswith(model_type)
        assert kind.example in expected()


def test_a_hub_id_that_cannot_be_had_says_so() -> None:
    with pytest.raises(UserError, match=r"someone/blip-itm: no such folder is here.*HF_HUB_OFFLINE is set"):
        check_cross_encoder("someone/blip-itm")

"""The committed checkpoints: the hub's own formats, loaded by transformers alone, small, and better than chance."""

import io
import json
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    BertTokenizer,
    BlipForImageTextRetrieval,
    BlipProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
)

from demo.batches import pixels
from demo.make_data import DATA
from demo.phrases import vocabulary
from demo.recall import mean_recall_at_1
from demo.vocabulary import NUM_TEXT_TOKENS, blip_processor, blip_text, siglip_processor

MODELS = Path(DATA).parent / "models"
BASE, LARGE, BLIP = MODELS / "siglip-base", MODELS / "siglip-large", MODELS / "blip-itm"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return pyarrow.parquet.read_table(DATA / "scenes.parquet").to_pylist()


@pytest.fixture(scope="module")
def few(rows: list[dict]) -> list[dict]:
    """Test pairs as they come: five in a row are near-duplicates."""
    return [row for row in rows if row["split"] == "test"][:40]


def pictures(rows: list[dict]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]


def test_sizes_are_within_the_budget() -> None:
    sizes = {folder: sum(path.stat().st_size for path in folder.iterdir()) for folder in (BASE, BLIP)}
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 24 * MEGABYTE
    assert sizes[BASE] <= 5.6 * MEGABYTE and sizes[BLIP] <= 9 * MEGABYTE
    assert {path.name for path in BASE.iterdir()} >= {"config.json", "model.safetensors", "preprocessor_config.json", "spiece.model"}
    assert {path.name for path in BLIP.iterdir()} >= {"config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt"}


def test_base_loads_with_plain_transformers() -> None:
    model, processor = SiglipModel.from_pretrained(BASE), SiglipProcessor.from_pretrained(BASE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.vision_config.image_size == 64 and processor.image_processor.size == {"height": 64, "width": 64}
    assert isinstance(processor.tokenizer, SiglipTokenizer) and processor.tokenizer.do_lower_case
    assert model.config.text_config.max_position_embeddings == NUM_TEXT_TOKENS == processor.tokenizer.model_max_length
    assert model.config.text_config.vocab_size == processor.tokenizer.vocab_size
    assert 1 < model.logit_scale.exp().item() < 200 and model.logit_bias.item() < 0


def test_large_loads_with_plain_transformers_and_is_wider_than_base() -> None:
    large, base = (SiglipModel.from_pretrained(folder) for folder in (LARGE, BASE))
    assert {parameter.dtype for parameter in large.parameters()} == {torch.float32}
    for tower in ("text_config", "vision_config"):
        assert getattr(large.config, tower).hidden_size > getattr(base.config, tower).hidden_size
    assert large.config.text_config.projection_size > base.config.text_config.projection_size  # the vectors' widths differ too
    assert large.config.vision_config.image_size == 64 and large.config.text_config.max_position_embeddings == NUM_TEXT_TOKENS
    assert SiglipProcessor.from_pretrained(LARGE).tokenizer.get_vocab() == siglip_processor().tokenizer.get_vocab()
    assert 1 < large.logit_scale.exp().item() < 200 and large.logit_bias.item() < 0


@torch.no_grad()
def test_large_finds_more_than_chance(few: list[dict]) -> None:
    large, processor = SiglipModel.from_pretrained(LARGE).eval(), SiglipProcessor.from_pretrained(LARGE)
    captions = [row["captions"][0] for row in few]
    inputs = processor(images=pictures(few), text=captions, padding="max_length", return_tensors="pt")
    logits = large(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits_per_image
    assert mean_recall_at_1(logits) > 3 / len(few)


def test_matcher_loads_with_plain_transformers_and_has_the_two_ids_of_the_released_one() -> None:
    model, report = BlipForImageTextRetrieval.from_pretrained(BLIP, output_loading_info=True)
    processor = BlipProcessor.from_pretrained(BLIP)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert isinstance(processor.tokenizer, BertTokenizer)
    num_words = len((BLIP / "vocab.txt").read_text(encoding="utf-8").splitlines())
    text = model.config.text_config
    assert text.vocab_size == num_words + 2 == len(processor.tokenizer) + 2
    assert text.bos_token_id == num_words, "[DEC]"
    assert text.hidden_size != 768 and model.config.vision_config.image_size == 64
    assert processor.image_processor.size == {"height": 64, "width": 64}


@pytest.mark.parametrize("folder", [BASE, LARGE, BLIP])
def test_image_processors_are_named_so_that_any_installation_loads_them(folder: Path) -> None:
    named = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["image_processor_type"]
    # The public name: resolved to the torchvision class or to Pillow's, whichever can run.
    assert named in ("SiglipImageProcessor", "BlipImageProcessor")
    assert AutoProcessor.from_pretrained(folder).image_processor is not None


def test_every_caption_fits_and_every_word_is_one_token(rows: list[dict]) -> None:
    base, blip = SiglipProcessor.from_pretrained(BASE).tokenizer, BlipProcessor.from_pretrained(BLIP).tokenizer
    assert all(len(base(word).input_ids) == 2 and len(blip(word).input_ids) == 3 for word in vocabulary())
    captions = [caption for row in rows for caption in row["captions"]]
    assert max(len(ids) for ids in base(captions).input_ids) <= NUM_TEXT_TOKENS
    lengths = [len(ids) for ids in blip([blip_text(caption) for caption in captions]).input_ids]
    assert max(lengths) <= blip.model_max_length == 35
    assert base.unk_token_id not in base("zebra & quilt")["input_ids"][:-1] and blip.unk_token_id not in blip("zebra quilt").input_ids


def test_vocabularies_made_anew_are_the_committed_ones() -> None:
    base, blip = SiglipProcessor.from_pretrained(BASE).tokenizer, BlipProcessor.from_pretrained(BLIP).tokenizer
    assert siglip_processor().tokenizer.get_vocab() == base.get_vocab()
    assert blip_processor().tokenizer.get_vocab() == blip.get_vocab()


@pytest.mark.parametrize("folder", [BASE, LARGE, BLIP])
def test_the_scripts_scale_pixels_as_the_saved_processors_do(few: list[dict], folder: Path) -> None:
    images = AutoProcessor.from_pretrained(folder).image_processor
    expected_BCHW = images(images=pictures(few[:4]), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(pictures(few[:4]), images.image_mean, images.image_std), expected_BCHW, rtol=0, atol=1e-5)


def test_cleaning_is_that_of_the_authors() -> None:
    assert blip_text('A "Red" circle, left of (a) box!  ~ Done.') == "a red circle, left of a box done"
    assert len(blip_text("word " * 50).split()) == 30


@torch.no_grad()
def test_base_and_matcher_find_more_than_chance(few: list[dict]) -> None:
    base, processor = SiglipModel.from_pretrained(BASE).eval(), SiglipProcessor.from_pretrained(BASE)
    captions = [row["captions"][0] for row in few]
    inputs = processor(images=pictures(few), text=captions, padding="max_length", return_tensors="pt")
    base_recall = mean_recall_at_1(base(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits_per_image)
    blip, words = BlipForImageTextRetrieval.from_pretrained(BLIP).eval(), BlipProcessor.from_pretrained(BLIP)
    inputs = words(images=pictures(few), text=[blip_text(text) for text in captions], padding=True, return_tensors="pt")
    inputs["input_ids"][:, 0] = len(words.tokenizer) + 1
    margins = []
    for pixels_CHW in inputs["pixel_values"]:
        scores_N2 = blip(inputs["input_ids"], pixels_CHW[None], attention_mask=inputs["attention_mask"]).itm_score
        margins.append(scores_N2[:, 1] - scores_N2[:, 0])
    assert base_recall > 3 / len(few)
    assert mean_recall_at_1(torch.stack(margins)) > 3 / len(few)

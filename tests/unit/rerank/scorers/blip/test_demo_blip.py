"""The demo's cross-encoder: a trained BLIP in the hub's format, loaded like a released one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import read_manifest
from rerank.scorers.blip.checkpoint import load_blip
from rerank.scorers.blip.scorer import BlipScorer
from rerank.scorers.blip.text import clean_caption

DEMO = Path(__file__).parents[5] / "demo"
FOLDER = DEMO / "models" / "blip-itm"

pytestmark = pytest.mark.skipif(not (FOLDER / "model.safetensors").exists(), reason="demo/models/blip-itm is not here")


@pytest.fixture(scope="module")
def scorer() -> BlipScorer:
    return BlipScorer.load(str(FOLDER), device="cpu")


@pytest.fixture(scope="module")
def scenes():
    return load_split(read_manifest(str(DEMO / "data" / "scenes.parquet")), "val")


def test_enc_is_the_last_of_two_ids_the_tokenizer_lacks(scorer: BlipScorer) -> None:
    num_tokens = len(AutoTokenizer.from_pretrained(FOLDER))
    assert (
        load_blip(str(FOLDER)).enc_token_id
        == num_tokens + 1
        == BlipForImageTextRetrieval.from_pretrained(FOLDER).config.text_config.vocab_size - 1
    )


def test_scores_equal_plain_transformers_on_drawn_scenes(scorer: BlipScorer, scenes) -> None:
    model = BlipForImageTextRetrieval.from_pretrained(FOLDER, dtype=torch.float32).eval()
    image_processor, tokenizer = BlipImageProcessorPil.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    captions = list(scenes.captions)[::40]
    for image_index in (0, 57, 123):
        image = scenes.load_image(image_index)
        pixels = image_processor(images=image, return_tensors="pt")["pixel_values"]
        plain = []
        for caption in captions:
            inputs = tokenizer(clean_caption(caption), return_tensors="pt", return_token_type_ids=False, truncation=True, max_length=35)
            inputs["input_ids"][:, 0] = load_blip(str(FOLDER)).enc_token_id
            with torch.no_grad():
                plain.append(float(model(pixel_values=pixels, **inputs).itm_score[0, 1]))
        np.testing.assert_allclose(scorer.score(image, captions), plain, atol=1e-5, rtol=0)
        assert np.ptp(plain) > 0.01


def test_it_prefers_true_captions_to_others_and_reads_the_picture(scorer: BlipScorer, scenes) -> None:
    """Area under the curve of true against random captions: over 0.8, where guessing gives 0.5 and the wrong column under 0.2."""
    wins = []
    for image in range(0, scenes.num_images, 5):
        true = np.flatnonzero(scenes.caption_image_C == image)
        false = np.flatnonzero(scenes.caption_image_C == (image * 7 + 31) % scenes.num_images)
        scores = scorer.score(scenes.load_image(image), [scenes.captions[int(caption)] for caption in [*true, *false]])
        wins += (scores[: len(true), None] > scores[None, len(true) :]).ravel().tolist()
    assert np.mean(wins) > 0.8

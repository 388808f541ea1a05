"""An export in sentence-transformers: the embeddings that the evaluation measures, whatever else is in a batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from tests.shared_files import SENTENCE_TRANSFORMERS_FILES
from tests.siglip2 import NUM_TOKENS, write_siglip2
from tests.small_job import TINY, SmallWorld, load
from train.model.siglip import TunedModel
from train.siglip.export import export_model

CAPTIONS = ["", "A dog, RUNS!", "the Red circle - on a 'square'", "red circle " * 40, "unknown \u72ac", "  two  blanks ", "a", "A" * 90]


@pytest.fixture(scope="module", params=["siglip", "siglip2"])
def exported(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    base = small_world.base if request.param == "siglip" else write_siglip2(folder / "base", load(small_world.manifest).captions)
    export_model(TunedModel(*load_siglip(base), "0"), folder / "export", "a card\n")
    return folder / "export"


def test_it_embeds_as_the_evaluation_does(small_world: SmallWorld, exported: Path) -> None:
    dataset, (model, inputs) = load(small_world.manifest, "test"), load_siglip(exported)
    captions = [*CAPTIONS, *dataset.captions]
    encoder, expected = SentenceTransformer(str(exported), device="cpu", trust_remote_code=False), embed_captions(model, inputs, captions)
    for batch_size in (len(captions), 1):
        np.testing.assert_allclose(encoder.encode(captions, batch_size=batch_size), expected, atol=1e-5, rtol=0)
    for encode in (encoder.encode_query, encoder.encode_document):
        np.testing.assert_allclose(encode(captions), expected, atol=1e-5, rtol=0)
    assert "attention_mask" not in encoder.preprocess(captions)
    pictures = [dataset.load_image(image) for image in range(dataset.num_images)]
    np.testing.assert_allclose(encoder.encode(pictures), embed_images(model, inputs, dataset), atol=1e-5, rtol=0)


def test_without_its_files_a_caption_depends_on_its_neighbours(exported: Path, tmp_path: Path) -> None:
    """Why they are there: the same folder without them, and without the processor's own padding."""
    for path in exported.iterdir():
        if path.name not in SENTENCE_TRANSFORMERS_FILES:
            (tmp_path / path.name).write_bytes(path.read_bytes())

    def difference() -> float:
        encoder = SentenceTransformer(str(tmp_path), device="cpu")
        together, alone = (encoder.encode(CAPTIONS, batch_size=size, normalize_embeddings=True) for size in (len(CAPTIONS), 1))
        return float(np.abs(together - alone).max())

    assert difference() < 1e-5
    path = tmp_path / "tokenizer_config.json"
    padding = ("padding", "truncation", "max_length", "pad_to_multiple_of")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in padding}))
    assert difference() > 1e-2


def test_the_length_is_the_text_towers(exported: Path) -> None:
    written = json.loads((exported / "sentence_bert_config.json").read_text())["processing_kwargs"]["text"]
    length = json.loads((exported / "config.json").read_text())["text_config"]["max_position_embeddings"]
    assert written == {"padding": "max_length", "max_length": length, "truncation": True}
    assert length in (TINY.num_tokens, NUM_TOKENS) == (12, 16)

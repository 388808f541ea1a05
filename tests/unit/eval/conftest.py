"""A small SigLIP with random weights in the hub's own file formats, and a few pictures and captions to feed it."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipTokenizer

WORDS = ["a", "the", "red", "blue", "green", "dog", "cat", "circle", "square", "left", "right"]
WORDS += ["of", "above", "below", "and", "on", "sits", "runs", "behind", "big", "small"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, and much slower on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, size=int(generator.integers(3, 12)))) for _ in range(300)]


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    """Two layers, 24 wide, 32 x 32 pixels, 16 tokens; weights so large that every input moves the embedding."""
    folder = tmp_path_factory.mktemp("siglip") / "tiny"
    folder.mkdir()
    model_file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model_file,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        unk_piece="<unk>",
        control_symbols=["<pad>"],
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model_file.getvalue())
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "projection_size": 24,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """40 small pictures of several shapes, lossless."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(1)
    paths = []
    for number in range(40):
        height, width = (int(side) for side in generator.integers(20, 60, 2))
        path = folder / f"{number:03d}.png"
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths

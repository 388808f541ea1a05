"""A small BLIP cross-encoder with random weights, in the hub's own file formats."""

from pathlib import Path

import torch
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "the", "red", "blue", "green", "dog", "cat", "circle", "square", "left", "right", "of", "above", "below", "and", "on"]
WORDS += ["sits", "runs", "##s", "##ning", ",", "'"]


def write_bert_tokenizer(folder: Path) -> BertTokenizer:
    """A WordPiece tokenizer from a vocab.txt of a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
    return BertTokenizer.from_pretrained(folder)


def write_processor(folder: Path, image_pixels: int) -> int:
    """Writes vocab.txt, tokenizer and image processor; returns the number of tokens."""
    tokenizer = write_bert_tokenizer(folder)
    image_processor = BlipImageProcessorPil(size={"height": image_pixels, "width": image_pixels})
    BlipProcessor(image_processor, tokenizer).save_pretrained(folder)
    return len(tokenizer)


def _randomise(model: BlipForImageTextRetrieval) -> None:
    """Weights large enough that both image and caption move the score (transformers starts the vision tower at 1e-10)."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "bias" in name:
                parameter.normal_(std=0.5 if "embedding" in name else 1.5 / max(parameter.shape[-1], 1) ** 0.5)


def write_tiny_blip(folder: Path) -> None:
    """A two-layer BLIP cross-encoder; its vocabulary is two larger than its tokenizer's, as the released one's is."""
    num_tokens = write_processor(folder, image_pixels=32)
    config = BlipConfig(
        text_config={
            "vocab_size": num_tokens + 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "bos_token_id": num_tokens,
            "sep_token_id": 3,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        image_text_hidden_size=16,
    )
    model = BlipForImageTextRetrieval(config)
    _randomise(model)
    model.save_pretrained(folder)

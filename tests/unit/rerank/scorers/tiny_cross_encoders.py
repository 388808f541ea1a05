"""Small random BLIP-2, ViLT and BridgeTower cross-encoders in the hub's file format, and their scores by plain transformers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BridgeTowerConfig,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerProcessor,
    PreTrainedModel,
    RobertaTokenizer,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.bridgetower.image_processing_pil_bridgetower import BridgeTowerImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from tests.tiny_blip import write_bert_tokenizer

CAPTIONS = [
    "a red circle above a blue square",
    "A Dog runs.",
    "the cat",
    "a green square left of the red circle, and a dog sits on the blue square below the cat",
    "dog",
    " ".join(["the red dog and the blue cat"] * 9),
    "zebra",
    "",
    "a red circle",
]


def write_roberta_tokenizer(folder: Path) -> RobertaTokenizer:
    """A byte-level tokenizer without merges, as RoBERTa's: one token per byte."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(letters)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return RobertaTokenizer.from_pretrained(folder)


def randomise(model: PreTrainedModel) -> None:
    """Weights large enough that picture and caption both move the score, and in every part of the model."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "bias" in name or name.endswith(("class_embedding", "beta", "scaled_factor")):
                parameter.normal_(std=0.5 if "embedding" in name or "token" in name else 1.5 / max(parameter.shape[-1], 1) ** 0.5)


def write_blip2(folder: Path, **qformer: Any) -> None:
    """A BLIP-2 cross-encoder of two layers, the first with cross-attention."""
    tokenizer = write_bert_tokenizer(folder)
    config = Blip2Config(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        qformer_config={
            "vocab_size": len(tokenizer) + 1,  # [DEC], as released
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "use_qformer_text_input": True,
            **qformer,
        },
        text_config={"model_type": "opt", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9},
        num_query_tokens=6,
        image_text_hidden_size=16,
    )
    model = Blip2ForImageTextRetrieval(config)
    randomise(model)
    model.save_pretrained(folder)
    Blip2Processor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def write_vilt(folder: Path, **values: Any) -> None:
    """A ViLT cross-encoder of two layers on patches of 8 pixels."""
    tokenizer = write_bert_tokenizer(folder)
    config = ViltConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
            **values,
        }
    )
    model = ViltForImageAndTextRetrieval(config)
    randomise(model)
    model.save_pretrained(folder)
    ViltProcessor(ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8), tokenizer).save_pretrained(folder)


def write_bridgetower(folder: Path, **values: Any) -> None:
    """A BridgeTower cross-encoder of four layers in each tower, the last two bridged; 64 wide, as one head of its vision tower is."""
    tokenizer = write_roberta_tokenizer(folder)
    config = BridgeTowerConfig(
        **{
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "text_config": {
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "intermediate_size": 96,
                "max_position_embeddings": 70,
            },
            "vision_config": {"hidden_size": 64, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
            **values,
        }
    )
    model = BridgeTowerForImageAndTextRetrieval(config)
    randomise(model)
    model.save_pretrained(folder)
    image_processor = BridgeTowerImageProcessorPil(size={"shortest_edge": 32}, crop_size={"shortest_edge": 32}, size_divisor=8)
    BridgeTowerProcessor(image_processor, tokenizer).save_pretrained(folder)


@dataclass(frozen=True)
class Family:
    """One kind of cross-encoder, as transformers has it.

    Attributes:
        kind: as rerank/scorers/supported.py calls it.
        write: writes a small random one into a folder; keywords change its config.
        model_class, image_processor: transformers' classes.
        max_tokens: what captions are cut to.
        call: arguments of every forward.
        output: attribute of the forward's output that holds the logits.
        head: name of the matching head, its weights being `.weight` and `.bias`.
        vision_tower: a module that only the picture goes through; none in ViLT.
    """

    kind: str
    write: Callable[..., None]
    model_class: type[PreTrainedModel]
    image_processor: Any
    max_tokens: int
    call: dict[str, Any]
    output: str
    head: str
    vision_tower: str


FAMILIES = {
    "blip-2": Family(
        "blip-2",
        write_blip2,
        Blip2ForImageTextRetrieval,
        BlipImageProcessorPil,
        35,
        {"use_image_text_matching_head": True},
        "logits_per_image",
        "itm_head",
        "vision_model.encoder",
    ),
    "vilt": Family("vilt", write_vilt, ViltForImageAndTextRetrieval, ViltImageProcessorPil, 40, {}, "logits", "rank_output", ""),
    "bridgetower": Family(
        "bridgetower",
        write_bridgetower,
        BridgeTowerForImageAndTextRetrieval,
        BridgeTowerImageProcessorPil,
        50,
        {},
        "logits",
        "itm_score.fc",
        "bridgetower.vision_model.visual.transformer.resblocks.0",
    ),
}


def plain_logits(family: Family, folder: Path, image: Image.Image, texts: list[str]) -> np.ndarray:
    """float64 copy of transformers' logits, shape (N, 2) or (N, 1): a whole forward for each pair, padded to the full length."""
    model = family.model_class.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pictures = dict(family.image_processor.from_pretrained(folder)(images=image, return_tensors="pt"))
    rows = []
    for text in texts:
        tokens = tokenizer([text], return_tensors="pt", padding="max_length", truncation=True, max_length=family.max_tokens)
        if family.kind == "blip-2":
            pictures.pop("pixel_mask", None)
            tokens.pop("token_type_ids", None)
        with torch.no_grad():
            rows.append(getattr(model(**pictures, **tokens, **family.call), family.output)[0].double().numpy())
    return np.stack(rows)


def changed_copy(
    source: Path,
    folder: Path,
    config: Callable[[dict], None] | None = None,
    weights: Callable[[dict], None] | None = None,
    without: str = "",
) -> Path:
    """A copy of a cross-encoder's folder with its config or its weights changed in place; `without` the files of a pattern."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if not without or not path.match(without):
            (folder / path.name).write_bytes(path.read_bytes())
    if config:
        values = json.loads((folder / "config.json").read_text())
        config(values)
        (folder / "config.json").write_text(json.dumps(values))
    if weights:
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

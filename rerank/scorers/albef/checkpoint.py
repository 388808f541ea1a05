"""Read an ALBEF cross-encoder from a folder that `python -m rerank.convert` wrote, and check it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from transformers import BertTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from eval.encoder.checkpoint import hash_weights
from eval.encoder.hub import CONFIG, SAFE_WHOLE, fetch_weights, model_folder
from eval.encoder.model_files import in_words
from eval.encoder.weights import not_finite
from eval.errors import SettingError, UserError
from rerank.scorers.albef.model import AlbefConfig, AlbefCrossEncoder
from rerank.scorers.checkpoint import Checkpoint, check_square, tokenizer_content
from rerank.scorers.supported import RERANKER


@dataclass(frozen=True)
class AlbefCheckpoint(Checkpoint):
    """An ALBEF cross-encoder; the image processor is BLIP's, which prepares images as ALBEF does, and the tokenizer bert-base-uncased's."""

    model: AlbefCrossEncoder

    def digest(self) -> str:
        """SHA-256 (hex) of the weights, the sizes, the image processor and the tokenizer."""
        processors = {"image_processor": self.image_processor.to_dict(), "tokenizer": tokenizer_content(self.tokenizer)}
        parts = {"config": self.model.config.to_dict()} | processors
        return hashlib.sha256(f"{json.dumps(parts, sort_keys=True, default=str)} {hash_weights(self.model)}".encode()).hexdigest()


def load_albef(model: str) -> AlbefCheckpoint:
    """Reads an ALBEF cross-encoder with its processors from a folder or a hub id; safetensors only, nothing is unpickled.

    Raises:
        UserError: weights missing, left over, of another shape or not finite; vocabulary or picture size that contradict
            the sizes; or files that cannot be read.
    """
    try:
        fetch_weights(model, RERANKER)
        folder = model_folder(model, RERANKER)
        with open(folder / CONFIG, encoding="utf-8") as file:
            config = AlbefConfig.from_dict(json.load(file), str(folder / CONFIG))
        tensors = load_file(folder / SAFE_WHOLE)
        image_processor = BlipImageProcessorPil.from_pretrained(folder, trust_remote_code=False)
        tokenizer = BertTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # of many classes, by the file and its damage
        raise SettingError(
            RERANKER,
            f"the ALBEF cross-encoder {model!r} could not be read: {in_words(error)}. Expected "
            "what `python -m rerank.convert ALBEF.pth --output DIR` writes: config.json, model.safetensors, preprocessor_config.json, "
            "tokenizer.json.",
        ) from error
    if len(tokenizer) != config.text.vocab_size:  # without its files transformers creates a tokenizer of five tokens
        raise SettingError(
            RERANKER,
            f"the tokenizer of {model!r} has {len(tokenizer)} tokens, the model {config.text.vocab_size}. "
            "Put the files of bert-base-uncased's tokenizer there (vocab.txt or tokenizer.json).",
        )
    check_square(model, config.vision.image_size, image_processor)
    return AlbefCheckpoint(build_albef(config, tensors, model), image_processor, tokenizer)


def build_albef(config: AlbefConfig, tensors: Mapping[str, torch.Tensor], source: str) -> AlbefCrossEncoder:
    """The cross-encoder with these sizes and weights, float32, in evaluation mode.

    Raises:
        UserError: weights are missing, left over, of another shape, or not finite; every one of them is named.
    """
    with torch.device("meta"):
        model = AlbefCrossEncoder(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    shared = expected.keys() & tensors.keys()
    faults = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "left over": sorted(tensors.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {expected[name]}"
            for name in sorted(shared)
            if tuple(tensors[name].shape) != expected[name]
        ],
        "not finite": sorted(not_finite((name, tensors[name]) for name in shared)),
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise UserError(
            f"{source}: the weights are not those of an ALBEF cross-encoder: {listed}. Use a checkpoint trained for image-text matching: "
            "ALBEF.pth, or the one tuned for retrieval on COCO or Flickr30k"
        )
    model.load_state_dict({name: tensors[name].float() for name in expected}, assign=True)
    return model.eval().requires_grad_(False)

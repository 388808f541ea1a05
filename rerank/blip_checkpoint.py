"""A BLIP matcher read from disk or the hub, and everything that must be true of it before a score can be believed."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from eval.errors import UserError

# Attention heads of the released BLIP towers by width. transformers defaults to 8 for text (#22625): the weights load
# without a murmur and the scores are wrong.
_TEXT_HEADS = {768: 12}
_VISION_HEADS = {768: 12, 1024: 16}
_CONFIG_KEYS_WITHOUT_EFFECT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


@dataclass(frozen=True)
class BlipCheckpoint:
    """A BLIP matcher in float32 with its two preprocessors.

    Attributes:
        model: BlipForImageTextRetrieval in evaluation mode, float32, on the CPU.
        image_processor: the Pillow one, on machines with torchvision too, so that a picture becomes the same tensor everywhere.
        tokenizer: WordPiece.
        enc_token_id: id of [ENC], which the original BLIP puts in place of [CLS] when it matches; None if the vocabulary has none.
    """

    model: Any
    image_processor: Any
    tokenizer: Any
    enc_token_id: int | None

    def digest(self) -> str:
        """SHA-256 (hex) of the weights, the parts of the config that act, the image processor and the tokenizer."""
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in _CONFIG_KEYS_WITHOUT_EFFECT}
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for state in ("truncation", "padding"):  # set by the last call, not part of the tokenizer
            tokenizer.pop(state, None)
        parts = {"config": config, "image_processor": self.image_processor.to_dict(), "tokenizer": tokenizer}
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_blip(model: str) -> BlipCheckpoint:
    """Reads a BlipForImageTextRetrieval with its processors from a folder or a hub id; safetensors only, nothing is unpickled.

    Raises:
        UserError: weights missing, of another shape or not finite; wrong number of heads; image size, vocabulary and
            processors that contradict each other; or files that cannot be read.
    """
    try:
        config = BlipConfig.from_pretrained(model)
        image_processor = BlipImageProcessorPil.from_pretrained(model)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise _unreadable(model, "the config, image processor or tokenizer", error) from error
    _check_heads(model, config)
    _check_image_size(model, config, image_processor)
    enc_token_id = _enc_token_id(model, config, tokenizer)
    return BlipCheckpoint(_load_weights(model, config), image_processor, tokenizer, enc_token_id)


def _unreadable(model: str, what: str, error: Exception) -> UserError:
    return UserError(
        f"rerank.model (--rerank): {what} of {model!r} could not be read: {' '.join(str(error).split())[:400]}. Expected a folder or "
        "hub id with config.json, model.safetensors, preprocessor_config.json and the tokenizer's files."
    )


def _load_weights(model: str, config: Any) -> Any:
    try:
        loaded: Any = BlipForImageTextRetrieval.from_pretrained(
            model, config=config, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(model, "the weights (model.safetensors)", error) from error
    blip, loading = loaded
    missing, misshapen = sorted(loading["missing_keys"]), sorted(name for name, *_ in loading["mismatched_keys"])
    if missing or misshapen:  # transformers fills both with random numbers
        raise UserError(
            f"rerank.model (--rerank): {model!r} lacks {len(missing)} weights of BlipForImageTextRetrieval and has {len(misshapen)} "
            f"of another shape than its config.json says; they would be random: {_first_names(missing + misshapen)}. "
            "Use a checkpoint trained for image-text matching, such as Salesforce/blip-itm-base-coco."
        )
    broken = sorted(name for name, tensor in blip.named_parameters() if not torch.isfinite(tensor).all())
    if broken:
        raise UserError(f"rerank.model (--rerank): weights of {model!r} are not finite: {_first_names(broken)}. Fetch or train it again.")
    return blip.eval()


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _check_heads(model: str, config: Any) -> None:
    towers = (("text_config", config.text_config, _TEXT_HEADS), ("vision_config", config.vision_config, _VISION_HEADS))
    for name, tower, released in towers:
        expected = released.get(tower.hidden_size)
        if expected is not None and tower.num_attention_heads != expected:
            raise UserError(
                f"rerank.model (--rerank): {name}.num_attention_heads of {model!r}: expected {expected} (every released BLIP tower "
                f"{tower.hidden_size} wide has {expected}); found {tower.num_attention_heads}, which loads the same weights and "
                "scores wrongly. A config without the key gets transformers' default of 8: write the number into its config.json."
            )
    if not config.text_config.is_decoder:
        raise UserError(
            f"rerank.model (--rerank): text_config.is_decoder of {model!r}: expected true (it is what gives the text tower its "
            "cross-attention to the image); found false. Set it in config.json."
        )


def _check_image_size(model: str, config: Any, image_processor: Any) -> None:
    size = config.vision_config.image_size
    expected = (size, size) if isinstance(size, int) else tuple(size)
    blank = Image.new("RGB", (expected[1] + 3, expected[0] * 2 + 1))  # neither square nor of the right size
    found = tuple(image_processor(images=blank, return_tensors="pt")["pixel_values"].shape[-2:])
    if found != expected:
        raise UserError(
            f"rerank.model (--rerank): the image processor of {model!r} makes pictures of {found[0]} x {found[1]} pixels where "
            f"vision_config.image_size is {expected[0]} x {expected[1]}. Make `size` in preprocessor_config.json agree with config.json."
        )


def _enc_token_id(model: str, config: Any, tokenizer: Any) -> int | None:
    """Id of [ENC]: the tokenizer's own, or the last of the model's where it has two more than the tokenizer ([DEC], [ENC])."""
    num_model_tokens, num_tokens = config.text_config.vocab_size, len(tokenizer)
    if num_model_tokens - num_tokens not in (0, 1, 2):  # where its files are missing transformers makes up a tokenizer of five tokens
        raise UserError(
            f"rerank.model (--rerank): the tokenizer of {model!r} has {num_tokens} tokens where the model has {num_model_tokens}; expected "
            "as many, or two fewer ([DEC] and [ENC]). Put the tokenizer's files (vocab.txt or tokenizer.json) of the trained model there."
        )
    own = tokenizer.get_vocab().get("[ENC]")
    if own is not None:
        return int(own)
    return num_model_tokens - 1 if num_model_tokens == num_tokens + 2 else None

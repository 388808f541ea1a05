"""A matcher's files read from disk or the hub, and what must be true of every kind before a score can be believed."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer

from eval.encoder.weights import load_weights
from eval.errors import UserError

ASKED = "rerank.model (--rerank)"
_CONFIG_KEYS_WITHOUT_EFFECT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


@dataclass(frozen=True)
class Checkpoint:
    """A matcher in float32 with its two preprocessors.

    Attributes:
        model: transformers' class with the matching head, in evaluation mode, float32, on the CPU.
        image_processor: the Pillow one, on machines with torchvision too, so that a picture becomes the same tensor everywhere.
        tokenizer: the model's, a fast one.
    """

    model: Any
    image_processor: Any
    tokenizer: Any

    def digest(self) -> str:
        """SHA-256 (hex) of the weights, the parts of the config that act, the image processor and the tokenizer."""
        processors = {"image_processor": self.image_processor.to_dict(), "tokenizer": tokenizer_content(self.tokenizer)}
        parts = {"config": config_content(self.model.config)} | processors
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def config_content(config: Any) -> dict[str, Any]:
    """What of a config of transformers acts on a model whose class and precision are given."""
    return {key: value for key, value in config.to_dict().items() if key not in _CONFIG_KEYS_WITHOUT_EFFECT}


def tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """What makes a fast tokenizer the one it is."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in ("truncation", "padding")}  # which the last call set


class Preprocessing(NamedTuple):
    """What of a checkpoint is read before its weights."""

    config: Any
    image_processor: Any
    tokenizer: Any


def read_preprocessing(model: str, config_class: Any, image_processor_class: Any) -> Preprocessing:
    """Config, image processor and tokenizer of a folder or hub id.

    Raises:
        UserError: one of them cannot be read.
    """
    try:
        config = config_class.from_pretrained(model, trust_remote_code=False)
        image_processor = image_processor_class.from_pretrained(model, trust_remote_code=False)
        return Preprocessing(config, image_processor, AutoTokenizer.from_pretrained(model, trust_remote_code=False))
    except Exception as error:  # of many classes, as the file and what is wrong with it
        raise _unreadable(model, "the config, image processor or tokenizer", error) from error


def complete_weights(
    model: str, cross_encoder_class: Any, config: Any, example: str, *, asked: str = ASKED, purpose: str = "image-text matching"
) -> Any:
    """The matcher, or another model, in float32 and evaluation mode, every weight of it read from the files (eval/encoder/weights.py).

    Args:
        cross_encoder_class: transformers' class with the matching head.
        example: hub id of a complete checkpoint of that class, for the message.
        asked: the key or option that named the model, for the message.
        purpose: what a checkpoint must be trained for, for the message.

    Raises:
        UserError: weights cannot be read, are missing, of another shape, or not finite.
    """
    try:
        matcher, loading = load_weights(cross_encoder_class, model, config, ignore_mismatched_sizes=True)
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, SafetensorError) as error:  # of sizes that cannot be, too
        raise _unreadable(model, "the weights (model.safetensors)", error, asked) from error
    missing, misshapen = sorted(loading["missing_keys"]), sorted(name for name, *_ in loading["mismatched_keys"])
    if missing or misshapen:  # transformers fills both with random numbers
        raise UserError(
            f"{asked}: {model!r} lacks {len(missing)} weights of {cross_encoder_class.__name__} and has {len(misshapen)} "
            f"of another shape than its config.json says; they would be random: {_first_names(missing + misshapen)}. "
            f"Use a checkpoint trained for {purpose}, such as {example}."
        )
    broken = sorted(name for name, tensor in matcher.named_parameters() if not torch.isfinite(tensor).all())
    if broken:
        raise UserError(f"{asked}: weights of {model!r} are not finite: {_first_names(broken)}. Fetch or train it again.")
    return matcher.eval()


def check_heads(model: str, where: str, width: int, num_heads: int, released: dict[int, int], family: str) -> None:
    """Refuse a tower with another number of attention heads than the released ones of its width (width -> heads).

    The number of heads changes no weight's shape: with a wrong one the weights load without a murmur and the scores are wrong.

    Raises:
        UserError: it has.
    """
    expected = released.get(width)
    if expected is not None and num_heads != expected:
        raise UserError(
            f"rerank.model (--rerank): {where}num_attention_heads of {model!r}: expected {expected} (every released {family} tower "
            f"{width} wide has {expected}); found {num_heads}, which loads the same weights and "
            "scores wrongly. A config without the key gets transformers' default: write the number into its config.json."
        )


def check_square(model: str, where: str, image_size: int | list[int] | tuple[int, int], image_processor: Any) -> None:
    """Refuse an image processor that makes pictures of another size than the vision tower takes.

    Raises:
        UserError: it does; `where` is the config's section, such as "vision_config.".
    """
    expected = height_and_width(image_size)
    blank = Image.new("RGB", (expected[1] + 3, expected[0] * 2 + 1))  # neither square nor of the right size
    found = _prepared_size(model, image_processor, blank)
    if found != expected:
        raise UserError(
            f"rerank.model (--rerank): the image processor of {model!r} makes pictures of {found[0]} x {found[1]} pixels where "
            f"{where}image_size is {expected[0]} x {expected[1]}. Make `size` in preprocessor_config.json agree with config.json."
        )


def check_shorter_side(model: str, image_processor: Any) -> None:
    """Refuse an image processor that does not bring pictures to a shorter side of its own, `size.shortest_edge`.

    Raises:
        UserError: it does not, or fails.
    """
    if not isinstance(image_processor.size["shortest_edge"], int):
        raise UserError(
            f"rerank.model (--rerank): `size` in preprocessor_config.json of {model!r}: expected a shortest_edge, in pixels; found "
            f"{image_processor.size}. Fetch that file again."
        )
    _prepared_size(model, image_processor, Image.new("RGB", (35, 33)))


def _prepared_size(model: str, image_processor: Any, picture: Image.Image) -> tuple[int, int]:
    """Pixels (height, width) of what the image processor makes of a picture.

    Raises:
        UserError: it fails, as with a mean of two numbers.
    """
    try:
        height, width = image_processor(images=picture, return_tensors="pt")["pixel_values"].shape[-2:]
    except Exception as error:  # of many classes, as what is wrong with its settings
        raise _unreadable(model, "the settings of the image processor (preprocessor_config.json)", error) from error
    return int(height), int(width)


def check_vocabulary(model: str, tokenizer: Any, num_model_tokens: int, is_right: Callable[[int], bool], expected: str) -> None:
    """Refuse a tokenizer that is not the model's: where its files are missing transformers makes up one of five tokens.

    Args:
        is_right: whether the model may have this many tokens more than the tokenizer.
        expected: the same in words.

    Raises:
        UserError: it is not.
    """
    if not is_right(num_model_tokens - len(tokenizer)):
        raise UserError(
            f"rerank.model (--rerank): the tokenizer of {model!r} has {len(tokenizer)} tokens where the model has {num_model_tokens}; "
            f"expected {expected}. Put the tokenizer's files (vocab.txt or tokenizer.json) of the trained model there."
        )


def height_and_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """A config's image size as pixels (height, width); one number is a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _unreadable(model: str, what: str, error: Exception, asked: str = ASKED) -> UserError:
    return UserError(
        f"{asked}: {what} of {model!r} could not be read or used: {in_words(error)}. Expected a folder or "
        "hub id with config.json, model.safetensors, preprocessor_config.json and the tokenizer's files."
    )


def in_words(error: Exception) -> str:
    """Its class too, for the text of a KeyError or a ZeroDivisionError alone says little."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


_LONGER_OVER_SHORTER = 1333 / 800  # how far the longer side may exceed the processor's shorter one (ViLT's and BridgeTower's processors)


_ROUNDED_UP = 0.5 - 1e-6  # they round to whole pixels before they round down to patches; the rest is for float noise


def within_aspect(image: Image.Image, image_processor: Any) -> Image.Image:
    """The picture, its short side stretched if the processor would round it down to nothing.

    ViLT's and BridgeTower's processors shrink a picture until its longer side is at most 1333/800 of `size.shortest_edge`, then round
    both sides down to multiples of `size_divisor`. Beyond a ratio of about 20 at 384 pixels nothing is left of the short side and
    transformers raises. Any other picture is returned as it is, so its score is transformers' own.
    """
    longest = int(_LONGER_OVER_SHORTER * image_processor.size["shortest_edge"])
    short, long = sorted(image.size)
    least = math.ceil(long * (image_processor.size_divisor - _ROUNDED_UP) / longest)
    if short >= least:
        return image
    stretched = (image.width, least) if image.width > image.height else (least, image.height)
    return image.resize(stretched, Image.Resampling.BICUBIC)

"""Read a cross-encoder's files from disk or the hub, and the checks that every kind must pass."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer

from eval.encoder.hub import model_folder
from eval.encoder.model_files import in_words
from eval.encoder.weights import load_weights, not_finite
from eval.errors import SettingError, UserError
from rerank.scorers.supported import RERANKER

_CONFIG_KEYS_WITHOUT_EFFECT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


@dataclass(frozen=True)
class Checkpoint:
    """A cross-encoder in float32 with its two preprocessors.

    Attributes:
        model: transformers' class with the matching head, in evaluation mode, float32, on the CPU.
        image_processor: the Pillow one, with torchvision installed or not, so that an image gives the same tensor everywhere.
        tokenizer: the model's, a fast one.
    """

    model: Any
    image_processor: Any
    tokenizer: Any

    def digest(self) -> str:
        """SHA-256 (hex) of the weights, the parts of the config that change scores, the image processor and the tokenizer."""
        processors = {"image_processor": self.image_processor.to_dict(), "tokenizer": tokenizer_content(self.tokenizer)}
        parts = {"config": config_content(self.model.config)} | processors
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def config_content(config: Any) -> dict[str, Any]:
    """The parts of a transformers config that change a model whose class and precision are given."""
    return {key: value for key, value in config.to_dict().items() if key not in _CONFIG_KEYS_WITHOUT_EFFECT}


def tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """The content of a fast tokenizer, without its last call's truncation and padding."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in content.items() if key not in ("truncation", "padding")}


def read_preprocessing(model: str, config_class: Any, image_processor_class: Any) -> tuple[Any, Any, Any]:
    """Config, image processor and tokenizer of a folder or hub id.

    Raises:
        UserError: one of them cannot be read.
    """
    try:
        folder = model_folder(model, RERANKER)
        config = config_class.from_pretrained(folder, trust_remote_code=False)
        image_processor = image_processor_class.from_pretrained(folder, trust_remote_code=False)
        return config, image_processor, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # of many classes, by the file and its damage
        raise _unreadable(model, "the config, image processor or tokenizer", error) from error


def complete_weights(
    model: str, cross_encoder_class: Any, config: Any, example: str, *, setting: str = RERANKER, purpose: str = "image-text matching"
) -> Any:
    """The model in float32 and evaluation mode, every weight read from the files (eval/encoder/weights.py).

    Args:
        cross_encoder_class: transformers' class with the matching head.
        example: hub id of a complete checkpoint of that class, for the message.
        setting: what the model was given as.
        purpose: what a checkpoint must be trained for, for the message.

    Raises:
        UserError: weights cannot be read, are missing, of another shape, or not finite.
    """
    try:
        loaded, loading = load_weights(cross_encoder_class, model, config, setting, ignore_mismatched_sizes=True)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, SafetensorError) as error:  # also for impossible sizes
        raise _unreadable(model, "the weights (model.safetensors or pytorch_model.bin)", error, setting) from error
    missing, misshapen = sorted(loading["missing_keys"]), sorted(name for name, *_ in loading["mismatched_keys"])
    if missing or misshapen:  # transformers fills both with random numbers
        raise SettingError(
            setting,
            f"{model!r} lacks {len(missing)} weights of {cross_encoder_class.__name__} and has {len(misshapen)} "
            f"of another shape than its config.json says; they would be random: {_first_names(missing + misshapen)}. "
            f"Use a checkpoint trained for {purpose}, such as {example}.",
        )
    if broken := sorted(not_finite(loaded.named_parameters())):
        raise SettingError(setting, f"weights of {model!r} are not finite: {_first_names(broken)}. Fetch or train it again.")
    return loaded.eval()


def check_heads(model: str, where: str, width: int, num_heads: int, released: dict[int, int], family: str) -> None:
    """Refuse a tower with another number of attention heads than the released ones of its width (width -> heads).

    The number of heads changes no weight's shape: with a wrong one the weights load without an error and the scores are wrong.

    Raises:
        UserError: the number differs.
    """
    expected = released.get(width)
    if expected is not None and num_heads != expected:
        raise SettingError(
            RERANKER,
            f"{where}num_attention_heads of {model!r}: expected {expected} (every released {family} tower "
            f"{width} wide has {expected}); found {num_heads}, which loads the same weights and "
            "scores wrongly. A config without the key gets transformers' default: write the number into its config.json.",
        )


def check_square(model: str, image_size: int | list[int] | tuple[int, int], image_processor: Any) -> None:
    """Refuse an image processor whose output size is not that of the vision tower.

    Raises:
        UserError: the sizes differ.
    """
    expected = height_and_width(image_size)
    blank = Image.new("RGB", (expected[1] + 3, expected[0] * 2 + 1))  # neither square nor of the right size
    found = _prepared_size(model, image_processor, blank)
    if found != expected:
        raise SettingError(
            RERANKER,
            f"the image processor of {model!r} makes pictures of {found[0]} x {found[1]} pixels where "
            f"vision_config.image_size is {expected[0]} x {expected[1]}. Make `size` in preprocessor_config.json agree with config.json.",
        )


def check_shorter_side(model: str, image_processor: Any) -> None:
    """Refuse an image processor without a shorter side to resize to, `size.shortest_edge`.

    Raises:
        UserError: it has none, or fails.
    """
    if not isinstance(image_processor.size["shortest_edge"], int):
        raise SettingError(
            RERANKER,
            f"`size` in preprocessor_config.json of {model!r}: expected a shortest_edge, in pixels; found "
            f"{image_processor.size}. Fetch that file again.",
        )
    _prepared_size(model, image_processor, Image.new("RGB", (35, 33)))


def _prepared_size(model: str, image_processor: Any, picture: Image.Image) -> tuple[int, int]:
    """Pixels (height, width) of the image processor's output for an image."""
    try:
        height, width = image_processor(images=picture, return_tensors="pt")["pixel_values"].shape[-2:]
    except Exception as error:  # of many classes, by the fault in its settings
        raise _unreadable(model, "the settings of the image processor (preprocessor_config.json)", error) from error
    return int(height), int(width)


def check_vocabulary(model: str, tokenizer: Any, num_model_tokens: int, is_right: Callable[[int], bool], expected: str) -> None:
    """Refuse a tokenizer that is not the model's: without its files transformers creates one of five tokens.

    Args:
        is_right: whether the model may have this many tokens more than the tokenizer.
        expected: the same in words.

    Raises:
        UserError: the sizes do not agree.
    """
    if not is_right(num_model_tokens - len(tokenizer)):
        raise SettingError(
            RERANKER,
            f"the tokenizer of {model!r} has {len(tokenizer)} tokens where the model has {num_model_tokens}; "
            f"expected {expected}. Put the tokenizer's files (vocab.txt or tokenizer.json) of the trained model there.",
        )


def height_and_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """A config's image size as pixels (height, width); one number is a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _unreadable(model: str, what: str, error: Exception, setting: str = RERANKER) -> SettingError:
    return SettingError(
        setting,
        f"{what} of {model!r} could not be read or used: {in_words(error)}. Expected a folder or "
        "hub id with config.json, model.safetensors or pytorch_model.bin, preprocessor_config.json and the tokenizer's files.",
    )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


_LONGER_OVER_SHORTER = 1333 / 800  # how far the longer side may exceed the processor's shorter one (ViLT's and BridgeTower's processors)
_ROUNDED_UP = 0.5 - 1e-6  # they round to whole pixels before they round down to patches; 1e-6 for float noise


def within_aspect(image: Image.Image, image_processor: Any) -> Image.Image:
    """The image, its short side stretched if the processor would round it down to 0.

    ViLT's and BridgeTower's processors shrink a picture until its longer side is at most 1333/800 of `size.shortest_edge`, then round
    both sides down to multiples of `size_divisor`. Beyond a ratio of about 20 at 384 pixels the short side becomes 0 and transformers
    raises. Any other image is returned unchanged, so its score equals that of transformers.
    """
    longest = int(_LONGER_OVER_SHORTER * image_processor.size["shortest_edge"])
    short, long = sorted(image.size)
    least = math.ceil(long * (image_processor.size_divisor - _ROUNDED_UP) / longest)
    if short >= least:
        return image
    stretched = (image.width, least) if image.width > image.height else (least, image.height)
    return image.resize(stretched, Image.Resampling.BICUBIC)

"""The guard at the door: which checkpoints can judge an (image, caption) pair, and why the others are refused."""

import json
import re
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from eval.errors import UserError
from rerank.cross_encoder_files import cross_encoder_files

EXPECTED = "Expected an image-text matcher: a BlipForImageTextRetrieval such as Salesforce/blip-itm-base-coco, or a folder in its format."

# Hub ids of text-text rerankers, so that they are refused before anything is downloaded. "jina-reranker-m0" and
# "Qwen3-VL-Reranker" read images: they are not of this kind, and are told apart by their config instead.
_TEXT_RERANKER_NAMES = re.compile(
    r"^cross-encoder/|ms-?marco|bge-(?:m3-)?reranker|mxbai-rerank|jina-reranker-(?:v\d|tiny|turbo)|gte-(?:multilingual-)?reranker"
    r"|qwen3-reranker|monot5|rankt5|rankllama|zerank|nv-rerankqa|bce-reranker|electra-base-.*cross",
    re.IGNORECASE,
)
_BI_ENCODERS = {"siglip", "siglip2", "clip", "openai-clip", "align", "altclip", "chinese_clip", "clipseg", "vision-text-dual-encoder"}
_BLIP_TASKS = {
    "BlipModel": "BlipModel has no matching head, and its logits_per_image go through projections whose weights are in no released "
    "checkpoint: they would be random (transformers#28034)",
    "BlipForConditionalGeneration": "it writes captions and holds no image-text matching head (itm_head)",
    "BlipForQuestionAnswering": "it answers questions and holds no image-text matching head (itm_head)",
}
_MATCHER = "BlipForImageTextRetrieval"


def check_matcher(model: str) -> str:
    """The kind of matcher `model` (a folder or a hub id) says of itself to be: "blip", a key of rerank/scorer.py's table.

    Reads names and config.json only; whether the weights are all there is checked when they are loaded.

    Raises:
        UserError: it is something else; the message says what, why that cannot rerank, and what to use.
    """
    if Path(model).is_dir():
        config = _folder_config(Path(model))
    else:
        _check_hub_name(model)
        config = _hub_config(model)
    reason = _why_not(config)
    if reason is None:
        return str(config["model_type"])
    library = cross_encoder_files(model)
    if library.judges_pairs and "image" in library.modalities:
        return "vlm"
    if library.judges_pairs:
        reason = _text_reranker_reason(f"a CrossEncoder that takes {', '.join(sorted(library.modalities)) or 'texts'} only")
    raise _refusal(model, reason)


def _refusal(model: str, reason: str) -> UserError:
    return UserError(f"rerank.model (--rerank): {model!r} cannot rerank images and captions: {reason}. {EXPECTED}")


def _text_reranker_reason(found: str) -> str:
    return (
        f"it is a text-text reranker ({found}): it reads two texts and never sees a picture, so it cannot know whether a caption fits one, "
        "and given an image's path it would score the path's letters"
    )


def _check_hub_name(model: str) -> None:
    if Path(model).is_file():
        raise UserError(f"rerank.model (--rerank): {model!r} is a file. {EXPECTED}")
    if _TEXT_RERANKER_NAMES.search(model):
        raise _refusal(model, _text_reranker_reason("known by its name"))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise UserError(f"rerank.model (--rerank): there is no folder {model!r}, and it is not a hub id either. {EXPECTED}")


def _hub_config(model: str) -> dict[str, Any]:
    try:
        config, _ = PretrainedConfig.get_config_dict(model)
    except OSError as error:
        raise UserError(
            f"rerank.model (--rerank): there is no folder {model!r} here, and no config.json could be had from the hub under that id "
            f"({str(error).splitlines()[0]}). Check the name and the connection. {EXPECTED}"
        ) from error
    return dict(config)


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        found = sorted(entry.name for entry in folder.iterdir())[:8]
        raise UserError(f"rerank.model (--rerank): the folder {str(folder)!r} holds no config.json (found: {found}). {EXPECTED}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"rerank.model (--rerank): {path} is not readable JSON ({error}). {EXPECTED}") from error
    if not isinstance(config, dict):
        raise UserError(f"rerank.model (--rerank): {path} holds a {type(config).__name__}, not an object. {EXPECTED}")
    return config


def _why_not(config: dict[str, Any]) -> str | None:
    """Why a model with this config cannot rerank here, or None if it can."""
    model_type = str(config.get("model_type", ""))
    architectures = [str(name) for name in config.get("architectures") or []]
    named = ", ".join(architectures) or f"model_type {model_type!r}"
    if model_type == "blip":
        wrong = [name for name in architectures if name != _MATCHER]
        return None if not wrong else _BLIP_TASKS.get(wrong[0], f"it is a {wrong[0]}, without an image-text matching head")
    if model_type == "albef":  # a folder that rerank/convert.py wrote
        return None
    if model_type in _BI_ENCODERS:
        return (
            f"it is a bi-encoder ({named}): it embeds image and caption apart, as the first stage does already; "
            "to evaluate it as a first stage hand it to --model"
        )
    if not _sees_images(config):
        is_classifier = any(name.endswith("ForSequenceClassification") for name in architectures)
        return _text_reranker_reason(named) if is_classifier else f"it is a model of another kind ({named}) that sees no picture"
    return f"it is of a kind that is not supported ({named})"


def _sees_images(config: dict[str, Any]) -> bool:
    """Whether a config speaks of pictures anywhere: a vision tower, or an image's or patch's size."""
    return any(key.startswith(("vision", "image_", "patch_")) or key in ("num_image_tokens", "visual_config") for key in config)

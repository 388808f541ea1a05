"""Which checkpoints are cross-encoders that score (image, caption) pairs, and why others are refused."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.encoder.hub import HubModel, model_folder
from eval.encoder.model_files import check_model_files
from eval.encoder.near_miss import meant
from eval.encoder.sealed import check_sealed
from eval.errors import SettingError, UserError
from eval.files import CONFIG_BYTES, read_text
from rerank.scorers.vlm.files import cross_encoder_inputs


@dataclass(frozen=True)
class CrossEncoderKind:
    """A family of models, one class of which scores pairs.

    Attributes:
        architecture: transformers' class with the matching head, as `architectures` of a config.json names it.
        example: hub id of a checkpoint of that class.
        siblings: other classes of the family, and why each cannot score a pair.
    """

    architecture: str
    example: str
    siblings: Mapping[str, str] = field(default_factory=dict)


_CAPTIONS = "it writes captions and holds no image-text matching head (itm_head)"
_ANSWERS = "it answers questions and holds no image-text matching head"
_NO_HEAD = "it is the towers alone, without an image-text matching head"
_FILLS = "it fills in masked words and holds no image-text matching head"
CROSS_ENCODER_KINDS: dict[str, CrossEncoderKind] = {
    "blip": CrossEncoderKind(
        "BlipForImageTextRetrieval",
        "Salesforce/blip-itm-base-coco",
        {
            "BlipModel": "BlipModel has no matching head, and its logits_per_image go through projections whose weights are in no "
            "released checkpoint: they would be random (transformers#28034)",
            "BlipForConditionalGeneration": _CAPTIONS,
            "BlipForQuestionAnswering": f"{_ANSWERS} (itm_head)",
        },
    ),
    "blip-2": CrossEncoderKind(
        "Blip2ForImageTextRetrieval",
        "Salesforce/blip2-itm-vit-g",
        {
            "Blip2ForConditionalGeneration": _CAPTIONS,
            "Blip2Model": f"{_NO_HEAD} (itm_head)",
            "Blip2VisionModelWithProjection": "it embeds images alone",
            "Blip2TextModelWithProjection": "it embeds texts alone",
        },
    ),
    "vilt": CrossEncoderKind(
        "ViltForImageAndTextRetrieval",
        "dandelin/vilt-b32-finetuned-coco",
        {
            "ViltForQuestionAnswering": f"{_ANSWERS} (rank_output)",
            "ViltForMaskedLM": f"{_FILLS} (rank_output)",
            "ViltModel": f"{_NO_HEAD} (rank_output)",
            "ViltForImagesAndTextClassification": "it compares two pictures (NLVR2) and holds no image-text matching head (rank_output)",
        },
    ),
    "bridgetower": CrossEncoderKind(
        "BridgeTowerForImageAndTextRetrieval",
        "BridgeTower/bridgetower-base-itm-mlm",
        {
            "BridgeTowerForMaskedLM": f"{_FILLS} (itm_score)",
            "BridgeTowerModel": f"{_NO_HEAD} (itm_score)",
            "BridgeTowerForContrastiveLearning": "it embeds image and caption to be compared by cosine and holds no image-text matching "
            "head (itm_score)",
        },
    ),
}
RERANKER = "reranker"
"""The setting that names a cross-encoder, for `eval.errors.named`."""
ALBEF = "albef"  # a folder that `python -m rerank.convert` wrote; transformers has no class for it
VLM = "vlm"  # a CrossEncoder of sentence-transformers that takes images, whatever its model class


def expected() -> str:
    """The supported cross-encoders in words, with an example of each kind."""
    kinds = list(CROSS_ENCODER_KINDS.values())
    others = ", ".join(f"{kind.architecture} ({kind.example})" for kind in kinds[1:])
    return (
        f"Expected an image-text cross-encoder: a {kinds[0].architecture} such as {kinds[0].example}, or one of {others}; or a folder "
        "in the format of one of these; or ALBEF, as python -m rerank.convert writes it; or a CrossEncoder of sentence-transformers that "
        "takes images, such as Qwen/Qwen3-VL-Reranker-2B."
    )


# Hub ids of text-text rerankers, refused before anything is downloaded. "jina-reranker-m0" and "Qwen3-VL-Reranker" read images: they
# do not match here, and their config decides.
_TEXT_RERANKER_NAMES = re.compile(
    r"^cross-encoder/|ms-?marco|bge-(?:m3-)?reranker|mxbai-rerank|jina-reranker-(?:v\d|tiny|turbo)|gte-(?:multilingual-)?reranker"
    r"|qwen3-reranker|monot5|rankt5|rankllama|zerank|nv-rerankqa|bce-reranker|electra-base-.*cross|granite-embedding-reranker"
    r"|rank_?(?:zephyr|vicuna)|trecdl22-crossencoder",
    re.IGNORECASE,
)
_COLBERT_NAMES = re.compile(r"colbert", re.IGNORECASE)  # not ColPali, ColQwen and their like, which embed pictures of pages
_GGUF_NAMES = re.compile(r"[-_.](?:gguf|ggml)$", re.IGNORECASE)
_BI_ENCODERS = {"siglip", "siglip2", "clip", "openai-clip", "align", "altclip", "chinese_clip", "clipseg", "vision-text-dual-encoder"}
_CROSS_ENCODER_KEY = "sentence_transformers"  # what its CrossEncoder, and no other, writes into config.json
_GGUF_REMEDY = " of llama.cpp (GGUF), which is not read here"


def check_cross_encoder(model: str) -> str:
    """The kind of cross-encoder of a folder or hub id, by its config.json: a key of `CROSS_ENCODER_KINDS`, or ALBEF or VLM.

    Loading checks that all weights are there; rerank/scorers/probes.py checks that scores depend on image and caption.

    Raises:
        UserError: it is another model; the message names it, why it cannot rerank, and what to use instead. Or it is an export that is
            not as it was written.
    """
    if model and Path(model).is_dir():  # the path of an empty name would be the working directory
        check_sealed(model)
    else:
        _check_hub_name(model)
    folder = model_folder(model, RERANKER)
    config = _folder_config(folder)
    check_model_files(model, RERANKER)
    is_cross_encoder = _is_cross_encoder(folder, config)
    reason = _why_not(config, is_cross_encoder)
    if reason is None:
        return str(config["model_type"])
    inputs = cross_encoder_inputs(folder)
    if "image" in inputs:
        return VLM
    if inputs:
        reason = _text_reranker_reason(f"a CrossEncoder of sentence-transformers that takes {', '.join(sorted(inputs))} only")
    raise _refusal(model, reason)


def _refusal(model: str, reason: str) -> UserError:
    return SettingError(RERANKER, f"{model!r} cannot rerank images and captions: {reason}. {expected()}")


def _text_reranker_reason(found: str) -> str:
    return (
        f"it is a text-text reranker ({found}): it reads two texts and never sees a picture, so it cannot know whether a caption fits one, "
        "and given an image's path it would score the path's letters"
    )


def _check_hub_name(model: str) -> None:
    if Path(model).is_file():
        raise SettingError(RERANKER, f"{model!r} is a file{_GGUF_REMEDY if _is_gguf(Path(model)) else ''}. {expected()}")
    if _TEXT_RERANKER_NAMES.search(model):
        raise _refusal(model, _text_reranker_reason("known by its name"))
    if _COLBERT_NAMES.search(model):
        raise _refusal(model, "it is a ColBERT (known by its name): it compares two texts word by word and never sees a picture")
    if _GGUF_NAMES.search(model):
        raise SettingError(RERANKER, f"{model!r} is by its name a file{_GGUF_REMEDY}. {expected()}")
    if HubModel.parse(model) is None:
        raise SettingError(RERANKER, f"there is no folder {model!r}, and it is not a hub id either. {expected()}{meant(model)}")


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        found = sorted(folder.iterdir())
        remedy = "; it holds a file" + _GGUF_REMEDY if any(map(_is_gguf, found)) else ""
        if (folder / "adapter_config.json").is_file():
            remedy = "; it is a PEFT adapter alone: merge it into its base (merge_and_unload) and save the whole"
        names = [entry.name for entry in found[:8]]
        what = f"the folder {str(folder)!r} holds no config.json (found: {names}){remedy}"
        raise SettingError(RERANKER, f"{what}. {expected()}{meant(str(folder))}")
    try:
        config = json.loads(read_text(path, CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(RERANKER, f"{path} is not readable JSON ({error}). {expected()}") from error
    if not isinstance(config, dict):
        raise SettingError(RERANKER, f"{path} holds a {type(config).__name__}, not an object. {expected()}")
    return config


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _is_cross_encoder(folder: Path, config: dict[str, Any]) -> bool:
    """Whether sentence-transformers saved the folder as a CrossEncoder, whatever its model class."""
    if _CROSS_ENCODER_KEY in config:
        return True
    marks = ""
    for name in ("modules.json", "config_sentence_transformers.json"):
        if (folder / name).is_file():
            marks += (folder / name).read_text(encoding="utf-8", errors="replace")
    return "cross_encoder" in marks or "CrossEncoder" in marks


def _why_not(config: dict[str, Any], is_cross_encoder: bool) -> str | None:
    """Why a model with this config cannot rerank here, or None if it can."""
    model_type = str(config.get("model_type", ""))
    listed = config.get("architectures") or []
    architectures = [str(name) for name in (listed if isinstance(listed, list) else [listed])]
    named = ", ".join(architectures) or f"model_type {model_type!r}"
    kind = CROSS_ENCODER_KINDS.get(model_type)
    if kind is not None:
        wrong = [name for name in architectures if name != kind.architecture]
        if not wrong:
            return None
        why = kind.siblings.get(wrong[0], f"it is a {wrong[0]}, without an image-text matching head")
        return f"{why}; use a {kind.architecture}, such as {kind.example}"
    if model_type == ALBEF:
        return None
    if model_type in _BI_ENCODERS:
        return (
            f"it is a bi-encoder ({named}): it embeds image and caption apart, as the first stage does already; "
            "to evaluate it as a first stage hand it to --model"
        )
    if not _sees_images(config):
        if is_cross_encoder:
            return _text_reranker_reason(f"a CrossEncoder of sentence-transformers, {named}")
        is_classifier = any(name.endswith("ForSequenceClassification") for name in architectures)
        return _text_reranker_reason(named) if is_classifier else f"it is a model of another kind ({named}) that sees no picture"
    return f"it is of a kind that is not supported ({named})"


def _sees_images(config: dict[str, Any]) -> bool:
    """Whether a config has a key of a vision tower, or of an image's or patch's size."""
    return any(key.startswith(("vision", "image_", "patch_")) or key in ("num_image_tokens", "visual_config") for key in config)

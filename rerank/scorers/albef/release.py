"""ALBEF's released .pth: the tensors of the cross-encoder, the others, and the sizes that follow from their shapes.

Shape letters: T image tokens (the first is the class token), V width of the vision tower.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from eval.errors import UserError
from rerank.scorers.albef.model import AlbefConfig, TextConfig, VisionConfig

_HEAD_WIDTH = 64  # of ViT-B and BERT base; it does not follow from any tensor's shape
_POSITIONS = "visual_encoder.pos_embed"
_PATCHES = "visual_encoder.patch_embed.proj.weight"
_WORDS = "text_encoder.embeddings.word_embeddings.weight"

# What a release holds in addition to the cross-encoder.
_NOT_NEEDED = {
    "momentum copies": re.compile(r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\."),
    "queues of the momentum copies": re.compile(r"(image_queue|text_queue|idx_queue|queue_ptr|ptr_queue)$"),
    "contrastive heads": re.compile(r"(vision_proj|text_proj)\.|temp$"),
    "masked-language head": re.compile(r"text_encoder\.cls\."),
    "counters": re.compile(r"text_encoder\.embeddings\.position_ids$"),
}


def albef_release(
    content: Any, source: str, image_size: int | None = None
) -> tuple[AlbefConfig, dict[str, torch.Tensor], dict[str, list[str]]]:
    """The cross-encoder in a .pth's content: {"model": tensors by name, ...}, or the tensors by name.

    Args:
        source: the file, for messages.
        image_size: pixels of a side; where they differ from the file's, the position embeddings are interpolated.

    Returns:
        Its sizes, from the tensors' shapes; its tensors and any that are not known here, by the names of rerank/scorers/albef/model.py;
        and the names of the tensors left out, by kind.

    Raises:
        UserError: it is no ALBEF, lacks the layers of image-text matching, or the size is impossible.
    """
    named = content.get("model", content) if isinstance(content, Mapping) else {}
    if not isinstance(named, Mapping) or not (wanted := {_POSITIONS, _PATCHES}) <= named.keys():
        found = sorted(map(str, named))[:5] if isinstance(named, Mapping) else type(named).__name__
        raise UserError(f"{source}: expected ALBEF's tensors, among them {sorted(wanted)}; found {found}")
    if strangers := sorted(str(name) for name, tensor in named.items() if not _is_plain(name, tensor)):
        raise UserError(
            f"{source}: expected tensors of numbers, dense and real, by name; found something else under {', '.join(strangers)}"
        )
    dropped: dict[str, list[str]] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in named.items():
        own_name = name.replace("text_encoder.bert.", "text_encoder.", 1)  # a pre-trained file has the prefix, a tuned one has not
        kind = next((kind for kind, pattern in _NOT_NEEDED.items() if pattern.match(own_name)), None)
        if kind is None:
            tensors[own_name] = tensor
        else:
            dropped.setdefault(kind, []).append(name)
    config = _sizes(tensors, source)
    if image_size is not None and image_size != config.vision.image_size:
        try:
            config = replace(config, vision=replace(config.vision, image_size=image_size))
        except ValueError as error:
            raise UserError(f"--image-size {image_size}: {error}") from error
        tensors[_POSITIONS] = interpolated(tensors[_POSITIONS], config.vision.image_size // config.vision.patch_size)
    return config, tensors, dropped


def _is_plain(name: Any, tensor: Any) -> bool:
    """Whether a tensor is dense and real: weights_only also lets sparse, quantised and complex ones through."""
    is_dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_quantized
    return isinstance(name, str) and is_dense and not tensor.is_complex()


def interpolated(positions_1TV: torch.Tensor, num_patches_a_side: int) -> torch.Tensor:
    """Position embeddings for a square of another number of patches; the class token's stays as it is.

    Bicubic, corners not aligned, as ALBEF does when it tunes at another size (models/vit.py, `interpolate_pos_embed`).
    """
    side = round((positions_1TV.shape[1] - 1) ** 0.5)
    grid_1Vss = positions_1TV[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid_1Vss, size=(num_patches_a_side, num_patches_a_side), mode="bicubic", align_corners=False)
    grid_1TV = resized.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions_1TV[:, :1].float(), grid_1TV], dim=1).to(positions_1TV.dtype)


def _sizes(tensors: Mapping[str, torch.Tensor], source: str) -> AlbefConfig:
    """The sizes that follow from the shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fusion = _numbers(shapes, r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.")
    if not fusion:
        raise UserError(f"{source}: no layer of its text tower attends to the image (no text_encoder.encoder.layer.N.crossattention)")
    try:
        num_patches, vision_size = shapes[_POSITIONS][1] - 1, shapes[_POSITIONS][2]
        vocab_size, text_size = shapes[_WORDS]
        sizes = VisionConfig(
            image_size=round(num_patches**0.5) * shapes[_PATCHES][-1],
            patch_size=shapes[_PATCHES][-1],
            hidden_size=vision_size,
            num_hidden_layers=1 + max(_numbers(shapes, r"visual_encoder\.blocks\.(\d+)\.")),
            num_attention_heads=vision_size // _HEAD_WIDTH,
            intermediate_size=shapes["visual_encoder.blocks.0.mlp.fc1.weight"][0],
        )
        text = TextConfig(
            vocab_size=vocab_size,
            hidden_size=text_size,
            num_hidden_layers=1 + max(_numbers(shapes, r"text_encoder\.encoder\.layer\.(\d+)\.")),
            fusion_layer=min(fusion),
            num_attention_heads=text_size // _HEAD_WIDTH,
            intermediate_size=shapes["text_encoder.encoder.layer.0.intermediate.dense.weight"][0],
            max_position_embeddings=shapes["text_encoder.embeddings.position_embeddings.weight"][0],
            type_vocab_size=shapes["text_encoder.embeddings.token_type_embeddings.weight"][0],
        )
        if text.fusion_layer == 0:
            raise UserError(
                f"{source}: every layer of its text tower attends to the image: this is no ALBEF but a BLIP in its original form. "
                "The hub has it ready to use: Salesforce/blip-itm-base-coco and its like"
            )
        if num_patches != round(num_patches**0.5) ** 2:
            raise UserError(f"{source}: {_POSITIONS} holds {num_patches} patches, which make no square")
        return AlbefConfig(sizes, text)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{source}: not the tensors of an ALBEF that matches images and captions: {error}") from error


def _numbers(shapes: Mapping[str, Any], pattern: str) -> list[int]:
    """The numbers of the layers whose names begin so."""
    return [int(found[1]) for name in shapes if (found := re.match(pattern, name))]

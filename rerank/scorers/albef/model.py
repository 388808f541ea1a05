"""ALBEF's cross-encoder: a vision tower, a text tower whose later layers attend to the image, and a matching head.

The text tower is one BERT in two halves. Its first `fusion_layer` layers read the caption alone, so their result holds for any
image; the others also attend to the image, whose keys and values hold for any caption. Both halves are functions of their own here.
Parameter names are those of the released files. Source: arXiv 2107.07651, section 3.1; Salesforce ALBEF, models/; a rewrite, not a copy.

Shape letters: C captions, L tokens of the longest, D width of the text tower, P pixels of a side, T image tokens (the first is the class
token), V width of the vision tower, H heads, W width of a head, Q query tokens.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextLayer

from eval.errors import UserError

MODEL_TYPE = "albef"


@dataclass(frozen=True)
class VisionConfig:
    """A ViT; the released one is B/16 at 256 pixels (pre-trained) or 384 (tuned for retrieval)."""

    image_size: int
    patch_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class TextConfig:
    """A BERT whose layers from `fusion_layer` on, counted from 0, attend to the image too; released: BERT base, fusion_layer 6."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    fusion_layer: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True)
class AlbefConfig:
    """Both towers' sizes."""

    vision: VisionConfig
    text: TextConfig

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that no model can have."""
        for name, tower in (("vision_config", self.vision), ("text_config", self.text)):
            if wrong := [f"{field.name} {getattr(tower, field.name)!r}" for field in fields(tower) if not getattr(tower, field.name) > 0]:
                raise ValueError(f"{name}: expected numbers above 0; found {', '.join(wrong)}")
            if tower.hidden_size % tower.num_attention_heads:
                raise ValueError(f"{name}: {tower.hidden_size} wide does not divide into {tower.num_attention_heads} heads")
        if self.vision.image_size % self.vision.patch_size:
            raise ValueError(f"vision_config: image_size {self.vision.image_size} is no multiple of patch_size {self.vision.patch_size}")
        if self.text.fusion_layer >= self.text.num_hidden_layers:
            raise ValueError(f"text_config: fusion_layer {self.text.fusion_layer} is not below num_hidden_layers")

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return {
            "model_type": MODEL_TYPE,
            "architectures": ["AlbefCrossEncoder"],
            "vision_config": asdict(self.vision),
            "text_config": asdict(self.text),
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str) -> "AlbefConfig":
        """The sizes in a config.json; `where` is its path, for messages.

        Raises:
            UserError: a size is missing, not a number, or contradicts another.
        """
        try:
            towers = {key: _numbers(kind, config[key]) for key, kind in (("vision_config", VisionConfig), ("text_config", TextConfig))}
            return cls(VisionConfig(**towers["vision_config"]), TextConfig(**towers["text_config"]))
        except KeyError as error:
            raise UserError(
                f"{where}: expected the sizes of an ALBEF cross-encoder; {error} is missing. Convert the released file again"
            ) from error
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: these are not the sizes of an ALBEF cross-encoder: {error}. Convert the released file again"
            ) from error


def _numbers(kind: type[VisionConfig] | type[TextConfig], section: Any) -> dict[str, Any]:
    """The fields of a tower, each a number of its type."""
    if not isinstance(section, Mapping):
        raise TypeError(f"expected an object, found {section!r}")
    for field in fields(kind):
        value = section.get(field.name, 0)
        if isinstance(value, bool) or not isinstance(value, int if field.type is int else (int, float)):
            raise TypeError(f"{field.name}: expected a number, found {value!r}")
    return dict(section)


KeysValues = tuple[torch.Tensor, torch.Tensor]


def _heads(x_BLD: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Shape (B, H, L, W) from (B, L, D)."""
    return x_BLD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _joined(x_BHLW: torch.Tensor) -> torch.Tensor:
    """Shape (B, L, D) from (B, H, L, W)."""
    return x_BHLW.transpose(1, 2).flatten(2)


class VisionTower(nn.Module):
    """ViT (pre-norm) with a class token; the captions attend to every token of its last layer, normalised."""

    def __init__(self, config: VisionConfig) -> None:
        """Untrained weights."""
        super().__init__()
        self.num_heads = config.num_attention_heads
        width = config.hidden_size
        num_tokens = (config.image_size // config.patch_size) ** 2 + 1
        patches = nn.Conv2d(3, width, kernel_size=config.patch_size, stride=config.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": patches})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.blocks = nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            attention = {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
            mlp = {"fc1": nn.Linear(width, config.intermediate_size), "fc2": nn.Linear(config.intermediate_size, width)}
            norms = {name: nn.LayerNorm(width, eps=config.layer_norm_eps) for name in ("norm1", "norm2")}
            self.blocks.append(nn.ModuleDict({**norms, "attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)}))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels_B3PP: torch.Tensor) -> torch.Tensor:
        """Features of the image's tokens, shape (B, T, V)."""
        patches_BTV = self.patch_embed["proj"](pixels_B3PP).flatten(2).transpose(1, 2)
        x_BTV = torch.cat([self.cls_token.expand(len(patches_BTV), -1, -1), patches_BTV], dim=1) + self.pos_embed
        block: Any
        for block in self.blocks:
            query, key, value = (_heads(part, self.num_heads) for part in block.attn.qkv(block.norm1(x_BTV)).chunk(3, dim=-1))
            x_BTV = x_BTV + block.attn.proj(_joined(F.scaled_dot_product_attention(query, key, value)))
            x_BTV = x_BTV + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x_BTV))))
        return self.norm(x_BTV)


def _text_tower(config: TextConfig, image_width: int) -> nn.ModuleDict:
    """Embeddings as BERT's, and layers as BLIP's text tower has them; those from `fusion_layer` on attend to the image."""
    width = config.hidden_size
    embeddings = {
        "word_embeddings": nn.Embedding(config.vocab_size, width),
        "position_embeddings": nn.Embedding(config.max_position_embeddings, width),
        "token_type_embeddings": nn.Embedding(config.type_vocab_size, width),
        "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps),
    }
    alone, fusing = (
        BlipTextConfig(
            hidden_size=width,
            encoder_hidden_size=image_width,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            layer_norm_eps=config.layer_norm_eps,
            is_decoder=attends_to_image,
        )
        for attends_to_image in (False, True)
    )
    layers = [BlipTextLayer(fusing if number >= config.fusion_layer else alone, number) for number in range(config.num_hidden_layers)]
    encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
    return nn.ModuleDict({"embeddings": nn.ModuleDict(embeddings), "encoder": encoder})


def _keys_values(attention: Any, source_BLD: torch.Tensor) -> KeysValues:
    key, value = (_heads(part(source_BLD), attention.self.num_attention_heads) for part in (attention.self.key, attention.self.value))
    return key, value


def _attended(attention: Any, x_BQD: torch.Tensor, keys_values: KeysValues, mask_B11L: torch.Tensor | None = None) -> torch.Tensor:
    query_BHQW = _heads(attention.self.query(x_BQD), attention.self.num_attention_heads)
    attended: torch.Tensor = attention.output(_joined(F.scaled_dot_product_attention(query_BHQW, *keys_values, attn_mask=mask_B11L)), x_BQD)
    return attended


def _layer(
    layer: Any, x_CLD: torch.Tensor, mask_CL: torch.Tensor, image: KeysValues | None = None, *, num_queries: int | None = None
) -> torch.Tensor:
    """The layer's output for the first `num_queries` tokens of each caption (all of them by default), shape (C, Q, D)."""
    own = _keys_values(layer.attention, x_CLD)
    x_CQD = _attended(layer.attention, x_CLD[:, :num_queries], own, mask_CL[:, None, None, :])
    if image is not None:
        # All tokens of all captions attend to one image: one row of C * Q queries, so that its keys and values need no copies.
        x_CQD = _attended(layer.crossattention, x_CQD.flatten(0, 1)[None], image)[0].unflatten(0, x_CQD.shape[:2])
    out_CQD: torch.Tensor = layer.feed_forward_chunk(x_CQD)
    return out_CQD


class AlbefCrossEncoder(nn.Module):
    """The parts of ALBEF that score a pair; its contrastive heads, momentum copies and queues are left out."""

    def __init__(self, config: AlbefConfig) -> None:
        """Untrained weights."""
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTower(config.vision)
        self.text_encoder: Any = _text_tower(config.text, config.vision.hidden_size)
        self.itm_head = nn.Linear(config.text.hidden_size, 2)

    @property
    def _layers(self) -> tuple[list[Any], list[Any]]:
        """The layers that read the caption alone, and those that attend to the image."""
        layers = list(self.text_encoder.encoder.layer)
        return layers[: self.config.text.fusion_layer], layers[self.config.text.fusion_layer :]

    def image_keys_values(self, pixels_13PP: torch.Tensor) -> list[KeysValues]:
        """For each fusion layer the keys and values of one image, each of shape (1, H, T, W)."""
        image_1TV = self.visual_encoder(pixels_13PP)
        return [_keys_values(layer.crossattention, image_1TV) for layer in self._layers[1]]

    def caption_states(self, input_ids_CL: torch.Tensor, mask_CL: torch.Tensor) -> torch.Tensor:
        """The captions after the layers that read them alone, shape (C, L, D); true in `mask_CL` for tokens, false for padding."""
        tables = self.text_encoder.embeddings
        positions_LD = tables.position_embeddings.weight[: input_ids_CL.shape[1]]
        x_CLD = tables.LayerNorm(tables.word_embeddings(input_ids_CL) + tables.token_type_embeddings.weight[0] + positions_LD)
        for layer in self._layers[0]:
            x_CLD = _layer(layer, x_CLD, mask_CL)
        return x_CLD

    def match_states(self, states_CLD: torch.Tensor, mask_CL: torch.Tensor, image: list[KeysValues]) -> torch.Tensor:
        """What the matching head reads: the first token of each caption after the fusion layers, shape (C, D).

        The last layer computes that token alone, as nothing reads the others.
        """
        *layers, last = zip(self._layers[1], image, strict=True)
        for layer, keys_values in layers:
            states_CLD = _layer(layer, states_CLD, mask_CL, keys_values)
        return _layer(last[0], states_CLD, mask_CL, last[1], num_queries=1)[:, 0]

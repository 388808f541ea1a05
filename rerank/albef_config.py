"""The sizes of an ALBEF matcher: config.json of a folder that `python -m rerank.convert` writes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

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

    @property
    def num_tokens(self) -> int:
        """Patches of a picture, and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


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
            "architectures": ["AlbefMatcher"],
            "vision_config": asdict(self.vision),
            "text_config": asdict(self.text),
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str) -> "AlbefConfig":
        """The sizes in a config.json, which lies at `where`.

        Raises:
            UserError: a size is missing, not a number, or contradicts another.
        """
        try:
            towers = {key: _numbers(kind, config[key]) for key, kind in (("vision_config", VisionConfig), ("text_config", TextConfig))}
            return cls(VisionConfig(**towers["vision_config"]), TextConfig(**towers["text_config"]))
        except KeyError as error:
            raise UserError(
                f"{where}: expected the sizes of an ALBEF matcher; {error} is missing. Convert the released file again"
            ) from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: these are not the sizes of an ALBEF matcher: {error}. Convert the released file again") from error


def _numbers(kind: type[VisionConfig] | type[TextConfig], section: Any) -> dict[str, Any]:
    """The fields of a tower, each a number of its type."""
    if not isinstance(section, Mapping):
        raise TypeError(f"expected an object, found {section!r}")
    for field in fields(kind):
        value = section.get(field.name, 0)
        if isinstance(value, bool) or not isinstance(value, int if field.type is int else (int, float)):
            raise TypeError(f"{field.name}: expected a number, found {value!r}")
    return dict(section)

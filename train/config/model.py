"""The section `model` of a configuration: what is tuned, and how much of it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from train.config.section import Section

Tower = Literal["image", "text"]


class LoraConfig(Section):
    """Low-rank adapters in the towers that are not frozen; scale and bias train too."""

    rank: Annotated[int, Field(gt=0)] = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Adapters are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before each adapter."""


class ScratchConfig(Section):
    """A small SigLIP from random weights, with a tokenizer learnt from the train captions: for trials, not for the best figures."""

    image_size: Annotated[int, Field(gt=0)] = 96
    """Side of the square images are squashed to, pixels."""
    patch_size: Annotated[int, Field(gt=0)] = 16
    """Side of a patch, pixels; divides image_size."""
    width: Annotated[int, Field(gt=0)] = 192
    """Width of both towers and of the embedding; divisible by num_heads."""
    num_layers: Annotated[int, Field(gt=0)] = 6
    """Layers of each tower."""
    num_heads: Annotated[int, Field(gt=0)] = 3
    """Attention heads of each layer."""
    vocab_size: Annotated[int, Field(ge=64)] = 4000
    """Most word pieces the tokenizer learns from the train captions."""
    num_tokens: Annotated[int, Field(ge=4)] = 32
    """Tokens a caption is padded or cut to."""

    @model_validator(mode="after")
    def _check(self) -> "ScratchConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide width {self.width}")
        return self


class ModelConfig(Section):
    """What is tuned."""

    base: str | None = None
    """Checkpoint to start from: a folder, or a hub id such as google/siglip-base-patch16-224."""
    scratch: ScratchConfig | None = None
    """Start from random weights instead of a base."""
    strip_punctuation: bool = False
    """Strip punctuation before a SigLIP 2 tokenizer, which only lower-cases; SigLIP's own always strips. An export keeps its way."""
    lora: LoraConfig | None = None
    """Train adapters instead of every weight."""
    freeze: list[Tower] = []
    """Towers that stay as they are."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    logit_bias: float | None = None
    """Start the bias here, not at the checkpoint's. A smaller batch holds relatively more positives: from 32k to 512 it wants about +4."""
    cache_frozen: bool = True
    """Run a frozen tower once over the train split and keep its embeddings in runs/NAME/frozen; false: run it at every step."""

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if (self.base is None) == (self.scratch is None):
            raise ValueError("give exactly one of base (a checkpoint) and scratch (random weights)")
        if self.scratch is not None and (self.lora is not None or self.freeze):
            raise ValueError("random weights cannot be frozen or left to adapters")
        return self

"""The SigLIP model under training: frozen towers, LoRA or full fine-tuning, and the optimizer's parameter groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import SiglipModel

from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.encoder.identity import Identity, identity_of
from eval.errors import named
from train.model.layer_decay import rate_scale
from train.optim.optimizer import Trainable, build_optimizer

if TYPE_CHECKING:
    from eval.encoder.inputs import SiglipInputs
    from train.config.job import TrainConfig
    from train.config.model import LoraConfig, ModelConfig

Part = Literal["image", "text", "scale_bias"]
_TOWER_PREFIX = {"image": "vision_model", "text": "text_model"}


@dataclass
class TunedModel(Trainable):
    """A SigLIP model under training.

    Attributes:
        siglip: the model, with adapters if any.
        inputs: its tokenizer and image processor.
        base_sha256: hash of the weights it started from.
        base_identity: the rest of what it started from; None where nobody asks.
    """

    siglip: SiglipModel
    inputs: SiglipInputs
    base_sha256: str
    base_identity: Identity | None = None

    @classmethod
    def load(cls, base: str, *, strip_punctuation: bool = False) -> TunedModel:
        """A checkpoint as it is; arguments and errors as `load_siglip`."""
        siglip, inputs = load_siglip(base, strip_punctuation=strip_punctuation)
        return cls(siglip, inputs, hash_weights(siglip), identity_of(siglip.config, inputs.image_processor, inputs.tokenizer, base))

    @property
    def module(self) -> torch.nn.Module:
        """The model, as every `Trainable` names it."""
        return self.siglip

    def scale_and_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logit scale (not its logarithm) and bias, scalars with gradients."""
        return self.siglip.logit_scale.exp().squeeze(), self.siglip.logit_bias.squeeze()


def build_model(config: ModelConfig, base: str, seed: int = 0) -> TunedModel:
    """Load the base checkpoint, add adapters and freeze towers.

    Args:
        base: checkpoint folder or hub id (config.base, or the folder a scratch model was written to).
        seed: of the adapters' initial weights, the same on every process.

    Raises:
        UserError: the base cannot be used.
    """
    with named({"model": "model.base"}):
        tuned = TunedModel.load(base, strip_punctuation=config.strip_punctuation)
    siglip = tuned.siglip
    if config.lora is not None:
        torch.manual_seed(seed)
        # Never in the vision head's nn.MultiheadAttention, whose adapters would get no gradient (docs/numerics.md).
        towers = "|".join(prefix for tower, prefix in _TOWER_PREFIX.items() if tower not in config.freeze)
        target = rf"({towers})\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
        add_lora(siglip, config.lora, target)
    for tower in config.freeze:
        getattr(siglip, _TOWER_PREFIX[tower]).requires_grad_(False)
    # peft freezes everything it does not adapt, and its modules_to_save does nothing for bare parameters (docs/numerics.md).
    siglip.logit_scale.requires_grad_(True)
    siglip.logit_bias.requires_grad_(True)
    if config.logit_bias is not None:
        with torch.no_grad():
            siglip.logit_bias.fill_(config.logit_bias)
    if config.gradient_checkpointing:
        siglip.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return tuned


def add_lora(model: Any, config: LoraConfig, target: str) -> None:
    """Add adapters to the layers whose names match a regular expression."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    get_peft_model(
        model, PeftLoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=target, bias="none")
    )


def part_of(name: str) -> Part:
    """Which part of the model a parameter belongs to, by its name."""
    if name in ("logit_scale", "logit_bias"):
        return "scale_bias"
    return "image" if name.startswith("vision_model.") else "text"


def make_optimizer(tuned: TunedModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, with Muon if asked, with a rate for each tower, of each of its layers with config.layer_decay, and for scale and bias."""
    rates = {"image": config.image_learning_rate, "text": config.text_learning_rate, "scale_bias": config.scale_bias_learning_rate}
    decay = config.layer_decay
    scale = None if decay is None else partial(rate_scale, layer_decay=decay, config=tuned.siglip.config)
    return build_optimizer(tuned, config, part_of, rates, scale, muon=config.optimizer == "muon")

"""The model that is tuned: towers frozen or not, LoRA or full, and the parameter groups the optimizer sees."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import SiglipModel

from eval.checkpoint import hash_weights, load_siglip
from eval.inputs import SiglipInputs
from train.config import JobConfig, LoraConfig, ModelConfig, TrainConfig

Part = Literal["image", "text", "scale_bias"]
_TOWER_PREFIX = {"image": "vision_model", "text": "text_model"}


@dataclass
class TunedModel:
    """A SigLIP model under training.

    Attributes:
        siglip: the model itself, adapters (if any) inside it; what is run.
        inputs: its tokenizer and image processor.
        base_sha256: hash of the weights it started from.
        peft: the wrapper that can merge the adapters, or None.
    """

    siglip: SiglipModel
    inputs: SiglipInputs
    base_sha256: str
    peft: Any = None

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(name, parameter) of everything that trains, in a fixed order."""
        return ((name, parameter) for name, parameter in self.siglip.named_parameters() if parameter.requires_grad)

    def scale_and_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logit scale (not its logarithm) and bias, scalars with gradients."""
        return self.siglip.logit_scale.exp().squeeze(), self.siglip.logit_bias.squeeze()


def build_model(config: ModelConfig, base: str, seed: int = 0) -> TunedModel:
    """Load the base and make ready what shall train.

    Args:
        base: checkpoint folder or hub id (config.base, or the folder a scratch model was written to).
        seed: what the first weights of adapters are drawn from, the same on every process.

    Raises:
        UserError: the base cannot be used.
    """
    siglip, inputs = load_siglip(base, strip_punctuation=config.strip_punctuation)
    tuned = TunedModel(siglip, inputs, hash_weights(siglip))
    if config.lora is not None:
        torch.manual_seed(seed)
        tuned.peft = _add_lora(siglip, config.lora, set(config.freeze))
    for tower in config.freeze:
        getattr(siglip, _TOWER_PREFIX[tower]).requires_grad_(False)
    # peft freezes everything it does not adapt, and its modules_to_save does nothing for bare parameters (facts.md).
    siglip.logit_scale.requires_grad_(True)
    siglip.logit_bias.requires_grad_(True)
    if config.logit_bias is not None:
        with torch.no_grad():
            siglip.logit_bias.fill_(config.logit_bias)
    if config.gradient_checkpointing:
        siglip.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return tuned


def _add_lora(siglip: SiglipModel, config: LoraConfig, frozen: set[str]) -> Any:
    """Adapters in every projection of the encoders' layers, of towers that are not frozen. Never in the vision head's
    nn.MultiheadAttention, whose adapters would get no gradient (facts.md)."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    towers = "|".join(prefix for tower, prefix in _TOWER_PREFIX.items() if tower not in frozen)
    target = rf"({towers})\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
    return get_peft_model(
        siglip, PeftLoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=target, bias="none")
    )


def merged_state(tuned: TunedModel) -> dict[str, torch.Tensor]:
    """The weights as a plain SiglipModel has them, float32 on the CPU: adapters are merged, and taken out again afterwards."""
    if tuned.peft is None:
        return {name: value.detach().float().cpu().contiguous() for name, value in tuned.siglip.state_dict().items()}
    # Merging and unmerging in place would leave rounding behind; so what is merged is restored from copies.
    layers = {name: module for name, module in tuned.siglip.named_modules() if hasattr(module, "base_layer") and hasattr(module, "merge")}
    state = {
        name.replace(".base_layer.", "."): value.detach().float().cpu().clone()
        for name, value in tuned.siglip.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in layers.items():
        delta = module.get_delta_weight("default").detach().float().cpu()
        state[f"{name}.weight"] += delta
    return state


def part_of(name: str) -> Part:
    """Which part of the model a parameter belongs to, by its name."""
    if name in ("logit_scale", "logit_bias"):
        return "scale_bias"
    return "image" if name.startswith("vision_model.") else "text"


def parameter_groups(tuned: TunedModel, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups: one per part and per decay, each with its peak rate under "peak" and its names under "names".

    Weight decay falls on the matrices of linear layers and convolutions only; not on biases, norms, embeddings, the pooling probe,
    scale and bias (the Hugging Face Trainer decays some of these: facts.md).
    """
    rates: dict[Part, float] = {
        "image": config.image_learning_rate or config.learning_rate,
        "text": config.text_learning_rate or config.learning_rate,
        "scale_bias": config.scale_bias_learning_rate or config.learning_rate,
    }
    embeddings = {
        f"{prefix}.{name}"
        for prefix, module in tuned.siglip.named_modules()
        if isinstance(module, torch.nn.Embedding)
        for name, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[Part, bool], dict[str, Any]] = {}
    for name, parameter in tuned.trainable():
        decays = parameter.ndim >= 2 and name not in embeddings and not name.endswith("probe")
        part = part_of(name)
        group = groups.setdefault(
            (part, decays),
            {"params": [], "names": [], "part": part, "peak": rates[part], "weight_decay": config.weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_optimizer(tuned: TunedModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the groups; the rate of each step is set by the loop."""
    device = next(tuned.siglip.parameters()).device
    return torch.optim.AdamW(
        parameter_groups(tuned, config),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=device.type == "cuda" or None,
    )


def resolve_base(config: JobConfig, scratch_folder: str) -> str:
    """Name of the checkpoint a job starts from."""
    return config.model.base if config.model.base is not None else scratch_folder

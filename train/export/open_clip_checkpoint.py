"""SigLIP's weights under the names of open_clip's SigLIP models, with the files by which open_clip loads them from a folder.

The layout is that of open_clip 3.3 (model_configs/ViT-B-16-SigLIP.json; its CustomTextCLIP: a vision transformer of timm under
`visual.trunk`, a text transformer under `text`). open_clip takes the size of a vision tower from timm alone, by a name or by a folder with
timm's own config.json; the latter, timm/, fits every size and the activation that the weights were trained with.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eval.encoder.inputs import SiglipInputs
from eval.encoder.sealed import seal
from eval.errors import UserError

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
TIMM_FOLDER = "timm"
_ACTIVATIONS = {"gelu_pytorch_tanh": ("gelu_tanh", "tanh"), "gelu": ("gelu", "none")}
"""Activation as transformers calls it -> as timm does, and as an argument of torch.nn.GELU."""
_EPSILON = 1e-6
"""Of every layer norm of timm's vision transformers."""
_BLOCK = {"layer_norm1": "norm1", "self_attn.out_proj": "attn.proj", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_TEXT_BLOCK = {"layer_norm1": "ln_1", "self_attn.out_proj": "attn.out_proj", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
_TEXT_BLOCK |= {"mlp.fc2": "mlp.c_proj"}
_HEAD = {"attention.out_proj": "proj", "layernorm": "norm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
"""Module of a block or of the pooling head as transformers calls it -> as timm or open_clip does."""

State = dict[str, torch.Tensor]


def open_clip_state(state: State, num_vision_layers: int, num_text_layers: int) -> State:
    """A SiglipModel's weights by open_clip's names; query, key and value of each attention become one matrix, as there."""
    vision, text = "vision_model", "text_model"
    found = {
        "logit_scale": state["logit_scale"].reshape(()),  # of both the logarithm
        "logit_bias": state["logit_bias"].reshape(()),
        "visual.trunk.pos_embed": state[f"{vision}.embeddings.position_embedding.weight"][None],
        "visual.trunk.attn_pool.latent": state[f"{vision}.head.probe"],
        "text.token_embedding.weight": state[f"{text}.embeddings.token_embedding.weight"],
        "text.positional_embedding": state[f"{text}.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        pooled = state[f"{vision}.head.attention.in_proj_{kind}"]
        width = len(pooled) // 3
        found |= {
            f"visual.trunk.patch_embed.proj.{kind}": state[f"{vision}.embeddings.patch_embedding.{kind}"],
            f"visual.trunk.norm.{kind}": state[f"{vision}.post_layernorm.{kind}"],
            f"visual.trunk.attn_pool.q.{kind}": pooled[:width],
            f"visual.trunk.attn_pool.kv.{kind}": pooled[width:],
            f"text.ln_final.{kind}": state[f"{text}.final_layer_norm.{kind}"],
            f"text.text_projection.{kind}": state[f"{text}.head.{kind}"],
        }
        found |= {f"visual.trunk.attn_pool.{new}.{kind}": state[f"{vision}.head.{old}.{kind}"] for old, new in _HEAD.items()}
        for layer in range(num_vision_layers):
            old_block, new_block = f"{vision}.encoder.layers.{layer}", f"visual.trunk.blocks.{layer}"
            found[f"{new_block}.attn.qkv.{kind}"] = _joined(state, old_block, kind)
            found |= {f"{new_block}.{new}.{kind}": state[f"{old_block}.{old}.{kind}"] for old, new in _BLOCK.items()}
        for layer in range(num_text_layers):
            old_block, new_block = f"{text}.encoder.layers.{layer}", f"text.transformer.resblocks.{layer}"
            found[f"{new_block}.attn.in_proj_{kind}"] = _joined(state, old_block, kind)
            found |= {f"{new_block}.{new}.{kind}": state[f"{old_block}.{old}.{kind}"] for old, new in _TEXT_BLOCK.items()}
    return {name: value.contiguous() for name, value in found.items()}


def _joined(state: State, block: str, kind: str) -> torch.Tensor:
    return torch.cat([state[f"{block}.self_attn.{part}_proj.{kind}"] for part in ("q", "k", "v")])


def check_open_clip(config: Any) -> None:
    """Refuse a SigLIP whose settings open_clip has no place for.

    Raises:
        UserError: naming them.
    """
    vision, text = config.vision_config, config.text_config
    faults = [f"activation {one.hidden_act}" for one in (vision, text) if one.hidden_act not in _ACTIVATIONS]
    faults += [f"vision layer_norm_eps {vision.layer_norm_eps}"] if vision.layer_norm_eps != _EPSILON else []
    faults += [] if getattr(vision, "vision_use_head", True) else ["a vision tower without its pooling head"]
    if faults:
        raise UserError(f"export.open_clip: open_clip's SigLIP models cannot have {', '.join(faults)}; set export.open_clip=false")


def write_open_clip(config: Any, state: State, inputs: SiglipInputs, folder: Path) -> None:
    """Write weights, open_clip_config.json, timm's config.json and the tokenizer to a new folder, and seal it.

    Args:
        config: a SiglipConfig.
        state: float32 weights of a SiglipModel.

    Raises:
        UserError: as `check_open_clip`.
        OSError: a file cannot be written.
    """
    check_open_clip(config)
    (folder / TIMM_FOLDER).mkdir(parents=True)
    inputs.save(folder)
    save_file(
        open_clip_state(state, config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers),
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    for path, record in {
        folder / CONFIG: _open_clip_config(config, inputs),
        folder / TIMM_FOLDER / "config.json": _timm_config(config, inputs),
    }.items():
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    seal(folder / TIMM_FOLDER)
    seal(folder)


def _ratio(width: int, hidden: int) -> float:
    """The ratio by which both packages find the width of a block's hidden layer: int(width x ratio)."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _open_clip_config(config: Any, inputs: SiglipInputs) -> dict[str, Any]:
    text, images = config.text_config, inputs.image_processor
    return {
        "model_cfg": {
            "embed_dim": config.vision_config.hidden_size,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": inputs.image_size,
                "timm_model_name": f"local-dir:{TIMM_FOLDER}",
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                "context_length": inputs.num_tokens,
                "vocab_size": text.vocab_size,
                "hf_tokenizer_name": ".",  # of a folder open_clip takes the tokenizer in it
                "tokenizer_kwargs": {"clean": "whitespace"},  # the tokenizer itself lower-cases
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": _ratio(text.hidden_size, text.intermediate_size),
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
                "norm_kwargs": {"eps": text.layer_norm_eps},
                "act_kwargs": {"approximate": _ACTIVATIONS[text.hidden_act][1]},
            },
        },
        "preprocess_cfg": {
            "size": inputs.image_size,
            "mean": list(images.image_mean),
            "std": list(images.image_std),
            "interpolation": "bilinear" if int(images.resample) == 2 else "bicubic",
            "resize_mode": "squash",
        },
    }


def _timm_config(config: Any, inputs: SiglipInputs) -> dict[str, Any]:
    vision, images = config.vision_config, inputs.image_processor
    return {
        "architecture": "vit_base_patch16_siglip_224",
        "num_classes": 0,
        "num_features": vision.hidden_size,
        "global_pool": "map",
        "model_args": {
            "img_size": vision.image_size,
            "patch_size": vision.patch_size,
            "embed_dim": vision.hidden_size,
            "depth": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "mlp_ratio": _ratio(vision.hidden_size, vision.intermediate_size),
            "act_layer": _ACTIVATIONS[vision.hidden_act][0],
        },
        "pretrained_cfg": {
            "input_size": [vision.num_channels, vision.image_size, vision.image_size],
            "interpolation": "bilinear" if int(images.resample) == 2 else "bicubic",
            "crop_pct": 1.0,
            "mean": list(images.image_mean),
            "std": list(images.image_std),
            "num_classes": 0,
            "pool_size": None,
        },
    }

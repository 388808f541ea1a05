"""Load a SigLIP checkpoint from a folder or the hub: in float32, with every weight, and hash its weights."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, SiglipModel

from eval.encoder.inputs import SiglipInputs
from eval.encoder.model_files import check_model_files, using_files
from eval.encoder.sealed import check_sealed
from eval.encoder.weights import load_weights, not_finite
from eval.errors import UserError
from eval.sharded import whole


def load_siglip(name: str | os.PathLike[str], *, strip_punctuation: bool = False) -> tuple[SiglipModel, SiglipInputs]:
    """Load model (float32, on the CPU, in evaluation mode) and inputs of a SigLIP or a fixed-resolution SigLIP 2 checkpoint.

    Raises:
        UserError: not found, of another architecture, without weights in safetensors or a pytorch_model.bin of tensors alone, or with
            weights missing (they would be random) or not finite.
    """
    name = str(name)
    config = load_siglip_config(name)
    try:
        model, info = load_weights(SiglipModel, name, config)
    except OSError as error:
        raise UserError(f"{name}: no weights in model.safetensors or pytorch_model.bin, whole or in shards ({error})") from error
    except SafetensorError as error:
        raise UserError(f"{name}: the weights are damaged ({error}); fetch or copy the file again") from error
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:  # shapes, heads, sizes
        raise UserError(f"{name}: the weights do not fit config.json ({error})") from error
    if info["missing_keys"] or info.get("mismatched_keys"):
        missing = sorted(str(key) for key in (*info["missing_keys"], *info.get("mismatched_keys", ())))
        raise UserError(f"{name}: {len(missing)} weight(s) are missing or of another shape, e.g. {missing[:5]}; they would be random")
    if broken := sorted(not_finite(model.named_parameters())):
        raise UserError(f"{name}: weights that are not finite, e.g. {', '.join(broken[:5])}. Fetch or train it again")
    return model.eval(), SiglipInputs.load(name, config, strip_punctuation=strip_punctuation)


def load_siglip_config(name: str) -> Any:
    """The config of a SigLIP checkpoint.

    Raises:
        UserError: there is no such checkpoint, it is another kind of model, or an export that is not as it was written.
    """
    check_sealed(name)
    if os.path.isdir(name) and not (Path(name) / "config.json").is_file():
        raise UserError(f"{name}: a folder without config.json is no Hugging Face checkpoint")
    if not os.path.isdir(name) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(
            f"{name!r}: neither a checkpoint folder nor a model of the hub: no such folder is here, and no hub id has this form. "
            "Expected a folder with config.json, such as runs/NAME/export, or OWNER/NAME on the hub"
        )
    check_model_files(name)
    try:
        with using_files(f"{name}: config.json could not be used"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except UserError as error:
        if os.path.isdir(name):
            raise
        raise UserError(f"{name}: neither a checkpoint folder nor a model that can be had from the hub ({error.__cause__})") from error
    if config.model_type == "siglip2":
        raise UserError(
            f"{name}: a NaFlex checkpoint of SigLIP 2 (model_type 'siglip2', pictures in their own proportions), which is not supported; "
            "take the fixed-resolution one of its size, e.g. google/siglip2-base-patch16-224"
        )
    if config.model_type != "siglip":
        raise UserError(
            f"{name}: expected a SigLIP checkpoint (model_type 'siglip'), found {config.model_type!r}; a cross-encoder is given to --rerank"
        )
    return config


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of a model's parameters, hex: the name of its weights. Call on every process."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(whole(parameter.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

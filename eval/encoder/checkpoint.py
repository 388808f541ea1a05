"""Load a SigLIP checkpoint from a folder or the hub: in float32, with every weight, and hash its weights."""

import hashlib
import os
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, SiglipModel

from eval.encoder.hub import model_folder
from eval.encoder.inputs import SiglipInputs
from eval.encoder.model_files import check_model_files, using_files
from eval.encoder.near_miss import meant
from eval.encoder.runtimes import RuntimeSiglip, TowerFiles
from eval.encoder.sealed import check_sealed
from eval.encoder.weights import load_weights, not_finite
from eval.errors import SettingError, UserError
from eval.sharded import whole


def load_siglip(name: str | os.PathLike[str], *, strip_punctuation: bool = False) -> tuple[SiglipModel, SiglipInputs]:
    """Load model (float32, on the CPU, in evaluation mode) and inputs of a SigLIP or a fixed-resolution SigLIP 2 checkpoint.

    Raises:
        SettingError: not found, of another architecture, without weights in safetensors or a pytorch_model.bin of tensors alone, or with
            weights missing (they would be random) or not finite.
    """
    name = str(name)
    config = load_siglip_config(name)
    try:
        model, info = load_weights(SiglipModel, name, config)
    except UserError:
        raise
    except OSError as error:
        raise SettingError(
            "model", f"{name}: no weights in model.safetensors or pytorch_model.bin, whole or in shards ({error})"
        ) from error
    except SafetensorError as error:
        raise SettingError("model", f"{name}: the weights are damaged ({error}); fetch or copy the file again") from error
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:  # shapes, heads, sizes
        raise SettingError("model", f"{name}: the weights do not fit config.json ({error})") from error
    if info["missing_keys"] or info.get("mismatched_keys"):
        missing = sorted(str(key) for key in (*info["missing_keys"], *info.get("mismatched_keys", ())))
        raise SettingError(
            "model", f"{name}: {len(missing)} weight(s) are missing or of another shape, e.g. {missing[:5]}; they would be random"
        )
    if broken := sorted(not_finite(model.named_parameters())):
        raise SettingError("model", f"{name}: weights that are not finite, e.g. {', '.join(broken[:5])}. Fetch or train it again")
    return model.eval(), SiglipInputs.load(name, config, strip_punctuation=strip_punctuation)


def load_encoder(name: str | os.PathLike[str], *, strip_punctuation: bool = False) -> tuple[Any, SiglipInputs]:
    """As `load_siglip`, and also towers of an export in ONNX or OpenVINO (`RuntimeSiglip`), which embed and cannot be trained.

    Args:
        name: folder, hub id, EXPORT/onnx, EXPORT/openvino, or one of a precision's two files, such as EXPORT/onnx/text_model_fp16.onnx.

    Raises:
        UserError: as `load_siglip` and `RuntimeSiglip.load`.
    """
    files = TowerFiles.find(name)
    if files is None:
        return load_siglip(name, strip_punctuation=strip_punctuation)
    return RuntimeSiglip.load(files).eval(), load_inputs(str(name), strip_punctuation=strip_punctuation)


def load_inputs(name: str, *, strip_punctuation: bool = False) -> SiglipInputs:
    """The inputs of a checkpoint alone, without its weights; for towers in ONNX or OpenVINO those of their export.

    Raises:
        UserError: as `load_siglip_config` and `SiglipInputs.load`.
    """
    name = _with_inputs(name)
    return SiglipInputs.load(name, load_siglip_config(name), strip_punctuation=strip_punctuation)


def check_encoder(name: str) -> None:
    """Refuse, without reading weights, what `load_encoder` would refuse for its config; errors as of `load_siglip_config`."""
    load_siglip_config(_with_inputs(name))


def _with_inputs(name: str) -> str:
    """The checkpoint whose config and inputs a model has: the export of towers in ONNX or OpenVINO, or the model itself."""
    files = TowerFiles.find(name)
    return name if files is None else str(files.export)


def load_siglip_config(name: str) -> Any:
    """The config of a SigLIP checkpoint.

    Raises:
        SettingError: there is no such checkpoint, it is another kind of model, or an export that is not as it was written.
    """
    check_sealed(name)
    folder = model_folder(name)
    if not (folder / "config.json").is_file():
        raise SettingError("model", f"{name}: a folder without config.json is no Hugging Face checkpoint.{meant(name)}")
    check_model_files(name)
    with using_files(f"{name}: config.json could not be used"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.name_or_path = name
    if config.model_type == "siglip2":
        raise SettingError(
            "model",
            f"{name}: a NaFlex checkpoint of SigLIP 2 (model_type 'siglip2', pictures in their own proportions), which is not supported; "
            "take the fixed-resolution one of its size, e.g. google/siglip2-base-patch16-224",
        )
    if config.model_type != "siglip":
        raise SettingError(
            "model",
            f"{name}: expected a SigLIP checkpoint (model_type 'siglip'), found {config.model_type!r}; a cross-encoder is given to "
            "--rerank, in a configuration to rerank.model",
        )
    return config


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of a model's parameters, hex: the name of its weights. Call on every process."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(whole(parameter.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Read a sentence-transformers CrossEncoder that takes images from disk or the hub, and check it."""

import hashlib
import importlib.util
import json
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn

from eval.encoder.checkpoint import hash_weights
from eval.encoder.hub import fetch_weights, model_folder, revision_in_use, without_revision
from eval.encoder.weights import check_shards, not_finite
from eval.errors import SettingError
from rerank.scorers.checkpoint import config_content, tokenizer_content
from rerank.scorers.supported import RERANKER

_HEADS = ("score", "classifier")  # names of transformers' sequence-classification heads


def load_cross_encoder(model: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The CrossEncoder of a folder or hub id; safetensors only, nothing is unpickled, no code of the model's own is run.

    Args:
        dtype: of the weights; the head computes in float32 in any case.

    Raises:
        UserError: sentence-transformers is not installed, the files cannot be read, weights are missing or not finite, it takes no
            images, or it does not give one or two numbers per pair.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise SettingError(
            RERANKER,
            f"{model!r} is a CrossEncoder of sentence-transformers, which is not installed here: "
            "pip install -c constraints.txt -e '.[rerank-vlm]' (Qwen3-VL-Reranker and others also want torchvision)",
        )
    from sentence_transformers import CrossEncoder

    fetch_weights(model, RERANKER)
    check_shards(model_folder(model, RERANKER))
    options = {"dtype": dtype, "use_safetensors": True}
    try:
        encoder = CrossEncoder(
            without_revision(model), revision=revision_in_use(model), device=str(device), model_kwargs=options, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, AttributeError, SafetensorError) as error:
        raise SettingError(
            RERANKER,
            f"sentence-transformers could not load {model!r}: {' '.join(str(error).split())[:400]}. Expected a "
            "CrossEncoder with safetensors that needs no code of its own; a processor that asks for torchvision needs it installed.",
        ) from error
    _check_inputs_and_outputs(model, encoder)
    _check_weights(model, encoder)
    _compute_head_in_float32(model, encoder.model)
    return encoder.eval()


def digest(encoder: Any) -> str:
    """SHA-256 (hex) of the weights, the configs that change scores, the processor, chat template, tokenizer and saved prompts."""
    modules = [(type(module).__name__, module.get_config_dict()) for module in encoder if hasattr(module, "get_config_dict")]
    parts = {
        "config": config_content(encoder.model.config),
        "modules": modules,
        "prompts": (encoder.prompts, encoder.default_prompt_name),
        "processor": encoder[0].processor.to_dict(),
        "chat_template": (getattr(encoder[0].processor, "chat_template", None), encoder.tokenizer.chat_template),
        "tokenizer": tokenizer_content(encoder.tokenizer),
        "max_tokens": encoder.max_seq_length,
    }
    return hashlib.sha256(f"{json.dumps(parts, sort_keys=True, default=str)} {hash_weights(encoder)}".encode()).hexdigest()


def _check_inputs_and_outputs(model: str, encoder: Any) -> None:
    if not {"image", "text"} <= {
        part for modality in encoder.modalities for part in ([modality] if isinstance(modality, str) else modality)
    }:
        raise SettingError(
            RERANKER,
            f"{model!r} takes {encoder.modalities}; expected a CrossEncoder that takes images and texts. "
            "A processor that lacks a library (torchvision, say) is left out by sentence-transformers: install it.",
        )
    if encoder.num_labels not in (1, 2):
        raise SettingError(RERANKER, f"{model!r} gives {encoder.num_labels} numbers per pair; expected one, or two (no match, match).")


def _check_weights(model: str, encoder: Any) -> None:
    """Refuse missing weights, which transformers fills with random numbers, and weights that are not finite."""
    skeleton: Any = type(encoder.model).from_pretrained(
        model_folder(model, RERANKER), device_map="meta", use_safetensors=True, output_loading_info=True, trust_remote_code=False
    )
    missing = sorted(map(str, (*skeleton[1]["missing_keys"], *(name for name, *_ in skeleton[1]["mismatched_keys"]))))
    if missing:
        raise SettingError(
            RERANKER,
            f"{model!r} lacks {len(missing)} weights of {type(encoder.model).__name__}, or has them in another "
            f"shape; they would be random: {', '.join(missing[:5])}. Fetch the checkpoint again, or use one trained as a reranker.",
        )
    if broken := sorted(not_finite(encoder.named_parameters())):
        raise SettingError(RERANKER, f"weights of {model!r} are not finite: {', '.join(broken[:5])}. Fetch or train it again.")


def _compute_head_in_float32(model: str, network: Any) -> None:
    """The last linear map in float32 whatever the weights' precision: logits in bfloat16 would have many ties."""
    head = network.get_output_embeddings() or next((found for name in _HEADS if (found := getattr(network, name, None)) is not None), None)
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)] if head is not None else []
    if not linears:
        raise SettingError(
            RERANKER,
            f"{model!r} is a {type(network).__name__}: expected a language model's head, or one of {_HEADS}, that makes the score.",
        )

    def forward(x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
        return F.linear(x.float(), linear.weight.float(), None if linear.bias is None else linear.bias.float())

    for linear in linears:
        linear.forward = lambda x, linear=linear: forward(x, linear)  # type: ignore[method-assign, assignment, misc]

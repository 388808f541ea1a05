"""ALBEF's score of one pair, plain and slow: one caption, one head at a time, float64, nothing shared."""

import math
from collections.abc import Mapping

import numpy as np
import torch


def oracle_logits(tensors: Mapping[str, torch.Tensor], sizes: dict, pixels_3PP: np.ndarray, ids: list[int]) -> np.ndarray:
    """Both logits of the matching head, float64, shape (2,).

    Args:
        tensors: the cross-encoder's, by their released names.
        sizes: "vision_heads", "vision_layers", "text_heads", "text_layers", "fusion_layer", "patch".
        pixels_3PP: the prepared picture.
        ids: token ids of the caption, no padding.
    """
    weights = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    image = _vision(weights, sizes, pixels_3PP.astype(np.float64))
    x = weights["text_encoder.embeddings.word_embeddings.weight"][ids]
    x = x + weights["text_encoder.embeddings.position_embeddings.weight"][: len(ids)]
    x = x + weights["text_encoder.embeddings.token_type_embeddings.weight"][0]
    x = _norm(weights, "text_encoder.embeddings.LayerNorm", x, 1e-12)
    for number in range(sizes["text_layers"]):
        layer = f"text_encoder.encoder.layer.{number}"
        x = _bert_attention(weights, f"{layer}.attention", x, x, sizes["text_heads"])
        if number >= sizes["fusion_layer"]:
            x = _bert_attention(weights, f"{layer}.crossattention", x, image, sizes["text_heads"])
        inner = _gelu(_linear(weights, f"{layer}.intermediate.dense", x))
        x = _norm(weights, f"{layer}.output.LayerNorm", _linear(weights, f"{layer}.output.dense", inner) + x, 1e-12)
    return _linear(weights, "itm_head", x[0])


def _vision(weights: dict[str, np.ndarray], sizes: dict, pixels: np.ndarray) -> np.ndarray:
    patch = sizes["patch"]
    kernel = weights["visual_encoder.patch_embed.proj.weight"]
    rows = [weights["visual_encoder.cls_token"][0, 0]]
    for top in range(0, pixels.shape[1], patch):
        for left in range(0, pixels.shape[2], patch):
            square = pixels[:, top : top + patch, left : left + patch]
            rows.append(np.einsum("vcpq,cpq->v", kernel, square) + weights["visual_encoder.patch_embed.proj.bias"])
    x = np.stack(rows) + weights["visual_encoder.pos_embed"][0]
    for number in range(sizes["vision_layers"]):
        block = f"visual_encoder.blocks.{number}"
        query, key, value = np.split(_linear(weights, f"{block}.attn.qkv", _norm(weights, f"{block}.norm1", x, 1e-6)), 3, axis=1)
        x = x + _linear(weights, f"{block}.attn.proj", _attend(query, key, value, sizes["vision_heads"]))
        inner = _gelu(_linear(weights, f"{block}.mlp.fc1", _norm(weights, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(weights, f"{block}.mlp.fc2", inner)
    return _norm(weights, "visual_encoder.norm", x, 1e-6)


def _bert_attention(weights: dict[str, np.ndarray], name: str, x: np.ndarray, source: np.ndarray, num_heads: int) -> np.ndarray:
    query = _linear(weights, f"{name}.self.query", x)
    key, value = (_linear(weights, f"{name}.self.{part}", source) for part in ("key", "value"))
    attended = _linear(weights, f"{name}.output.dense", _attend(query, key, value, num_heads))
    return _norm(weights, f"{name}.output.LayerNorm", attended + x, 1e-12)


def _attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, num_heads: int) -> np.ndarray:
    width = query.shape[1] // num_heads
    parts = []
    for head in range(num_heads):
        columns = slice(head * width, (head + 1) * width)
        logits = query[:, columns] @ key[:, columns].T / math.sqrt(width)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        parts.append(shares / shares.sum(axis=1, keepdims=True) @ value[:, columns])
    return np.concatenate(parts, axis=1)


def _linear(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: dict[str, np.ndarray], name: str, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

"""BLIP's matching forward over the weights of transformers' BlipForImageTextRetrieval, arranged for one image and many captions.

It equals transformers' own forward to float noise. The differences: the image's keys and values of every cross-attention are computed
once and shared by its captions; captions are packed, one after another without padding, so that linear layers and the attention to the
image process real tokens alone; the last layer computes only the first token, which the matching head reads; and attention is torch's
scaled_dot_product_attention, which transformers' class does not support.

Shape letters: C captions, P tokens of all captions together, L the longest caption in tokens, T image tokens, H heads, E width of a
head, D = H x E width of the text tower, V width of the vision tower.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rerank.scorers.blip.text import PackedCaptions

ImageStates = list[tuple[torch.Tensor, torch.Tensor]]
"""What the text tower needs of one image: keys and values of each layer's cross-attention, (1, H, T, E) each."""


class BlipForward:
    """The two towers and the head of one BLIP cross-encoder; call it under inference_mode.

    In bfloat16 the linear layers' weights are converted, once; embeddings, layer norms, the residual stream and the head stay float32.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        """model: a BlipForImageTextRetrieval in evaluation mode; its linear layers except the head are converted to `dtype`, in place."""
        self._vision, self._text, self._head = model.vision_model, model.text_encoder, model.itm_head
        self._num_vision_heads = model.config.vision_config.num_attention_heads
        self._num_text_heads = model.config.text_config.num_attention_heads
        for tower in (self._vision, self._text):
            for module in tower.modules():
                if isinstance(module, torch.nn.Linear):
                    module.to(dtype)

    def image_states(self, pixels_1CHW: torch.Tensor) -> ImageStates:
        """One image through the vision tower and into each cross-attention's keys and values; pixels: float32, (1, 3, height, width)."""
        image_TV = self._image_tokens(pixels_1CHW)
        layers = []
        for layer in self._text.encoder.layer:
            attention = layer.crossattention.self
            layers.append((self._heads(_linear(attention.key, image_TV)), self._heads(_linear(attention.value, image_TV))))
        return layers

    def match_logits(self, image: ImageStates, captions: PackedCaptions) -> torch.Tensor:
        """Logits of "no match" and "match", float32 of shape (C, 2)."""
        embeddings = self._text.embeddings
        hidden_PD = embeddings.word_embeddings(captions.ids_P) + embeddings.position_embeddings(captions.positions_P)
        hidden_PD = embeddings.LayerNorm(hidden_PD)
        last = len(image) - 1
        for number, (layer, keys_and_values) in enumerate(zip(self._text.encoder.layer, image, strict=True)):
            hidden_PD = self._layer(layer, hidden_PD, captions, *keys_and_values, first_only=number == last)
        logits_C2: torch.Tensor = self._head(hidden_PD)
        return logits_C2

    def _layer(
        self,
        layer: Any,
        hidden_PD: torch.Tensor,
        captions: PackedCaptions,
        keys_1HTE: torch.Tensor,
        values_1HTE: torch.Tensor,
        *,
        first_only: bool,
    ) -> torch.Tensor:
        """(P, D) in and out; (C, D) out if `first_only`, the first token of each caption."""
        attended = self._self_attention(layer.attention.self, hidden_PD, captions, first_only=first_only)
        rows = _add_and_norm(layer.attention.output, attended, hidden_PD[captions.starts_C] if first_only else hidden_PD)
        queries = self._heads(_linear(layer.crossattention.self.query, rows))
        seen = scaled_dot_product_attention(queries, keys_1HTE, values_1HTE)
        rows = _add_and_norm(layer.crossattention.output, seen[0].transpose(0, 1).flatten(1), rows)
        inner = layer.intermediate.intermediate_act_fn(_linear(layer.intermediate.dense, rows))
        return _add_and_norm(layer.output, inner, rows)

    def _self_attention(self, attention: Any, hidden_PD: torch.Tensor, captions: PackedCaptions, *, first_only: bool) -> torch.Tensor:
        """Self-attention within each caption, on padded tokens: it is about a hundredth of the work."""
        keys, values = (self._padded(_linear(part, hidden_PD), captions) for part in (attention.key, attention.value))
        if first_only:
            first_CD = _linear(attention.query, hidden_PD[captions.starts_C])
            queries = first_CD.unflatten(1, (self._num_text_heads, -1))[:, :, None]
        else:
            queries = self._padded(_linear(attention.query, hidden_PD), captions)
        out_CHLE = scaled_dot_product_attention(queries, keys, values, attn_mask=captions.mask_C11L)
        out_CLD = out_CHLE.transpose(1, 2).flatten(2)
        return out_CLD[:, 0] if first_only else out_CLD[captions.rows_P, captions.positions_P]

    def _padded(self, packed_PD: torch.Tensor, captions: PackedCaptions) -> torch.Tensor:
        """(P, D) -> (C, H, L, E)."""
        return packed_PD[captions.index_CL].unflatten(2, (self._num_text_heads, -1)).transpose(1, 2)

    def _heads(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (1, H, N, E)."""
        return rows_ND.unflatten(1, (self._num_text_heads, -1)).transpose(0, 1)[None]

    def _image_tokens(self, pixels_1CHW: torch.Tensor) -> torch.Tensor:
        """The vision tower's output, float32 of shape (T, V)."""
        hidden_TV = self._vision.embeddings(pixels_1CHW)[0]
        for layer in self._vision.encoder.layers:
            attention = layer.self_attn
            mixed = _linear(attention.qkv, layer.layer_norm1(hidden_TV)).unflatten(1, (3, self._num_vision_heads, -1))
            queries, keys, values = mixed.permute(1, 2, 0, 3)[:, None]
            seen = scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
            hidden_TV = hidden_TV + _linear(attention.projection, seen[0].transpose(0, 1).flatten(1))
            inner = layer.mlp.activation_fn(_linear(layer.mlp.fc1, layer.layer_norm2(hidden_TV)))
            hidden_TV = hidden_TV + _linear(layer.mlp.fc2, inner)
        tokens_TV: torch.Tensor = self._vision.post_layernorm(hidden_TV)
        return tokens_TV


def _linear(module: torch.nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """The layer in the precision of its weights."""
    result: torch.Tensor = module(rows.to(module.weight.dtype))
    return result


def _add_and_norm(output: Any, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """A sub-layer's end: its dense layer, the residual added in the residual's precision, and the layer norm."""
    normed: torch.Tensor = output.LayerNorm(_linear(output.dense, rows) + residual)
    return normed

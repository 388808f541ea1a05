"""BLIP-2 as a cross-encoder of (image, caption) pairs: transformers' Blip2ForImageTextRetrieval and its matching head.

    scorer = Blip2Scorer.load("Salesforce/blip2-itm-vit-g")
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

An image goes through the vision tower once. In the Q-Former queries and caption attend to each other from the first layer on, so beyond
the vision tower only the keys and values of cross-attention depend on the image alone. The queries of all captions of a batch attend to
the image as one sequence: cross-attention has no mask among them, so the result is the same, and keys and values are computed once per
batch. Captions are prepared as in the original's evaluation (LAVIS, blip2.py `compute_sim_matrix` and blip_processors.py): cleaned, 50
words, 35 tokens.

Shape letters: C captions of a batch, L tokens of its longest, Q query tokens, T image tokens, D width of the Q-Former, V of the
vision tower.
"""

from typing import Any

import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from eval.errors import SettingError
from rerank.scorers.base import BatchedCrossEncoder, additive_mask
from rerank.scorers.blip.text import clean_caption
from rerank.scorers.checkpoint import (
    Checkpoint,
    check_heads,
    check_square,
    check_vocabulary,
    complete_weights,
    height_and_width,
    read_preprocessing,
)
from rerank.scorers.scorer import InputLimits
from rerank.scorers.supported import CROSS_ENCODER_KINDS, RERANKER

MAX_WORDS = 50
MAX_TOKENS = 35
_QFORMER_HEADS = {768: 12}
_VISION_HEADS = {1024: 16, 1408: 16}


class Blip2Scorer(BatchedCrossEncoder):
    """Scores one image against many captions (a `PairScorer`)."""

    name = "blip-2"

    @property
    def reads(self) -> InputLimits:
        """Images resized to the vision tower's square, captions cut to 35 tokens."""
        config = self._model.config
        num_positions = config.qformer_config.max_position_embeddings
        return InputLimits(*height_and_width(config.vision_config.image_size), min(MAX_TOKENS, num_positions))

    @staticmethod
    def _read(model: str) -> Checkpoint:
        config, image_processor, tokenizer = read_preprocessing(model, Blip2Config, BlipImageProcessorPil)
        qformer, vision = config.qformer_config, config.vision_config
        check_heads(model, "qformer_config.", qformer.hidden_size, qformer.num_attention_heads, _QFORMER_HEADS, "BLIP-2")
        check_heads(model, "vision_config.", vision.hidden_size, vision.num_attention_heads, _VISION_HEADS, "BLIP-2")
        if not qformer.use_qformer_text_input:
            raise SettingError(
                RERANKER,
                f"qformer_config.use_qformer_text_input of {model!r}: expected true (the Q-Former of a "
                f"cross-encoder reads the caption); found false, as in BLIP-2's captioners. Use {CROSS_ENCODER_KINDS['blip-2'].example}.",
            )
        check_square(model, vision.image_size, image_processor)
        # One more where the processor has added "<image>", which is for generation, to the tokenizer; one less where [DEC] is missing.
        check_vocabulary(model, tokenizer, qformer.vocab_size, lambda more: abs(more) <= 1, "as many, give or take one ([DEC], <image>)")
        loaded = complete_weights(model, Blip2ForImageTextRetrieval, config, CROSS_ENCODER_KINDS["blip-2"].example)
        return Checkpoint(loaded, image_processor, tokenizer)

    def _cleaned(self, caption: str) -> str:
        return clean_caption(caption, max_words=MAX_WORDS)

    def _encode_image(self, pixels_1CHW: torch.Tensor) -> torch.Tensor:
        """Features of the image's tokens, shape (1, T, V)."""
        return self._model.vision_model(pixel_values=pixels_1CHW).last_hidden_state

    def _match_states(self, encoded: torch.Tensor, ids_CL: torch.Tensor, mask_CL: torch.Tensor) -> torch.Tensor:
        """The query tokens after the Q-Former, shape (C, Q, D)."""
        queries_CQD = self._model.query_tokens.expand(len(ids_CL), -1, -1)
        embedded = self._model.embeddings(input_ids=ids_CL, query_embeds=queries_CQD)
        hidden = self._model.qformer.layernorm(embedded)  # shape (C, Q + L, D)
        mask = additive_mask(torch.cat([mask_CL.new_ones(queries_CQD.shape[:2]), mask_CL], dim=1), self.device)
        for layer in self._model.qformer.encoder.layer:
            hidden = _qformer_layer(layer, hidden, mask, encoded, queries_CQD.shape[1])
        return hidden[:, : queries_CQD.shape[1]]

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._model.itm_head(states).mean(dim=1)


def _qformer_layer(layer: Any, hidden: torch.Tensor, mask: torch.Tensor | None, image_1TV: torch.Tensor, num_queries: int) -> torch.Tensor:
    """One of transformers' Blip2QFormerLayer, with the image's keys and values shared by the captions; shapes (C, Q + L, D)."""
    hidden = layer.attention(hidden, attention_mask=mask)
    queries_CQD, text_CLD = hidden[:, :num_queries], hidden[:, num_queries:]
    if layer.has_cross_attention:
        flat = queries_CQD.reshape(1, -1, queries_CQD.shape[-1])
        queries_CQD = layer.crossattention(flat, encoder_hidden_states=image_1TV).reshape(queries_CQD.shape)
    return torch.cat([layer.feed_forward_chunk_query(queries_CQD), layer.feed_forward_chunk(text_CLD)], dim=1)

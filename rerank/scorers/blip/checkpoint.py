"""Read a BLIP cross-encoder from disk or the hub, and check it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from eval.errors import SettingError
from rerank.scorers.base import token_ids
from rerank.scorers.blip.text import clean_caption
from rerank.scorers.checkpoint import Checkpoint, check_heads, check_square, check_vocabulary, complete_weights, read_preprocessing
from rerank.scorers.supported import CROSS_ENCODER_KINDS, RERANKER

MAX_TOKENS = 35
# Attention heads of the released BLIP towers by width. transformers defaults to 8 for text (#22625).
_TEXT_HEADS = {768: 12}
_VISION_HEADS = {768: 12, 1024: 16}


@dataclass(frozen=True)
class BlipCheckpoint(Checkpoint):
    """A BLIP cross-encoder (BlipForImageTextRetrieval) in float32 with its two preprocessors.

    Attributes:
        enc_token_id: id of [ENC], which the original BLIP puts in place of [CLS] when it matches; None if the vocabulary has none.
    """

    enc_token_id: int | None

    @property
    def max_tokens(self) -> int:
        """What captions are cut to: as BLIP was trained and evaluated."""
        return min(MAX_TOKENS, int(self.model.config.text_config.max_position_embeddings))

    def token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each caption, cleaned, with [ENC] in the first place if the vocabulary has it, cut to `max_tokens`."""
        ids = token_ids(self.tokenizer, [clean_caption(caption) for caption in captions], self.max_tokens)
        return ids if self.enc_token_id is None else [(self.enc_token_id, *caption[1:]) for caption in ids]


def load_blip(model: str) -> BlipCheckpoint:
    """Reads a BlipForImageTextRetrieval with its processors from a folder or a hub id.

    Raises:
        UserError: weights missing, of another shape or not finite; wrong number of heads; image size, vocabulary and
            processors that contradict each other; or files that cannot be read.
    """
    config, image_processor, tokenizer = read_preprocessing(model, BlipConfig, BlipImageProcessorPil)
    text, vision = config.text_config, config.vision_config
    check_heads(model, "text_config.", text.hidden_size, text.num_attention_heads, _TEXT_HEADS, "BLIP")
    check_heads(model, "vision_config.", vision.hidden_size, vision.num_attention_heads, _VISION_HEADS, "BLIP")
    if not text.is_decoder:
        raise SettingError(
            RERANKER,
            f"text_config.is_decoder of {model!r}: expected true (it is what gives the text tower its "
            "cross-attention to the image); found false. Set it in config.json.",
        )
    check_square(model, vision.image_size, image_processor)
    enc_token_id = _enc_token_id(model, text.vocab_size, tokenizer)
    loaded = complete_weights(model, BlipForImageTextRetrieval, config, CROSS_ENCODER_KINDS["blip"].example)
    return BlipCheckpoint(loaded, image_processor, tokenizer, enc_token_id)


def _enc_token_id(model: str, num_model_tokens: int, tokenizer: Any) -> int | None:
    """Id of [ENC]: the tokenizer's own, or the last of the model's where it has two more than the tokenizer ([DEC], [ENC])."""
    check_vocabulary(model, tokenizer, num_model_tokens, lambda more: more in (0, 1, 2), "as many, or two fewer ([DEC] and [ENC])")
    own = tokenizer.get_vocab().get("[ENC]")
    if own is not None:
        return int(own)
    return num_model_tokens - 1 if num_model_tokens == len(tokenizer) + 2 else None

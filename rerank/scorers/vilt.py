"""ViLT as a cross-encoder of (image, caption) pairs: transformers' ViltForImageAndTextRetrieval.

    scorer = ViltScorer.load("dandelin/vilt-b32-finetuned-coco")
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

ViLT has one tower, which reads words and patches together: only the patch embedding depends on the image alone, and is computed once.
An image keeps its aspect ratio; its shorter side becomes 384 pixels. Captions are cut to 40 tokens, as in the original (ViLT, config.py
`max_text_len`).

transformers draws an image's patches with torch.multinomial: with `max_image_length` -1, as in the released checkpoints, all of them
in random order, which changes scores by float noise and advances torch's random state; with a positive one (in pretraining, 200) that many
at random, which changes scores from call to call. Here all patches are read, in order: scores are the same at every call, and equal
transformers' where it drops none.

Shape letters: C captions of a batch, L tokens of its longest, P patches, D width.
"""

import torch
from PIL import Image
from torch.nn import functional
from transformers import ViltConfig, ViltForImageAndTextRetrieval
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from eval.processes import sent
from rerank.scorers.base import BatchedCrossEncoder
from rerank.scorers.checkpoint import (
    Checkpoint,
    check_heads,
    check_shorter_side,
    check_vocabulary,
    complete_weights,
    read_preprocessing,
    within_aspect,
)
from rerank.scorers.scorer import InputLimits
from rerank.scorers.supported import CROSS_ENCODER_KINDS

MAX_TOKENS = 40
_HEADS = {768: 12}


class ViltScorer(BatchedCrossEncoder):
    """Scores one image against many captions (a `PairScorer`); its one logit is the score, whatever `score_kind` says."""

    name = "vilt"

    @property
    def reads(self) -> InputLimits:
        """Images resized to the processor's shorter side, captions cut to 40 tokens."""
        side = self._checkpoint.image_processor.size["shortest_edge"]
        return InputLimits(side, side, min(MAX_TOKENS, self._model.config.max_position_embeddings), keeps_aspect=True)

    @staticmethod
    def _read(model: str) -> Checkpoint:
        config, image_processor, tokenizer = read_preprocessing(model, ViltConfig, ViltImageProcessorPil)
        check_heads(model, "", config.hidden_size, config.num_attention_heads, _HEADS, "ViLT")
        check_shorter_side(model, image_processor)
        check_vocabulary(model, tokenizer, config.vocab_size, lambda more: more == 0, "as many")
        return Checkpoint(
            complete_weights(model, ViltForImageAndTextRetrieval, config, CROSS_ENCODER_KINDS["vilt"].example), image_processor, tokenizer
        )

    def _framed(self, image: Image.Image) -> Image.Image:
        return within_aspect(image, self._checkpoint.image_processor)

    def _encode_image(self, pixels_1CHW: torch.Tensor) -> torch.Tensor:
        """Embedded patches of the whole image in reading order, [CLS] before them, shape (1, 1 + P, D)."""
        embeddings = self._model.vilt.embeddings
        patches_1Dhw = embeddings.patch_embeddings(pixels_1CHW)
        side = self._model.config.image_size // self._model.config.patch_size
        table_1Dhw = embeddings.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        positions_1Dhw = functional.interpolate(table_1Dhw, size=patches_1Dhw.shape[2:], mode="bilinear", align_corners=True)
        patches_1PD = (patches_1Dhw + positions_1Dhw).flatten(2).transpose(1, 2)
        return torch.cat([embeddings.cls_token + embeddings.position_embeddings[:, :1], patches_1PD], dim=1)

    def _match_states(self, encoded: torch.Tensor, ids_CL: torch.Tensor, mask_CL: torch.Tensor) -> torch.Tensor:
        """The first token after the tower, shape (C, 1, D)."""
        patches_CPD = encoded.expand(len(ids_CL), -1, -1)
        hidden = self._model.vilt(
            input_ids=ids_CL,
            attention_mask=sent(mask_CL, self.device),
            image_embeds=patches_CPD,
            pixel_mask=ids_CL.new_ones(patches_CPD.shape[:2]),
        ).last_hidden_state
        return hidden[:, :1]

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._model.rank_output(self._model.vilt.pooler(states))  # the pooler again: here in float32

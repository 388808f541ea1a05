"""BridgeTower as a cross-encoder of (image, caption) pairs: transformers' BridgeTowerForImageAndTextRetrieval.

    scorer = BridgeTowerScorer.load("BridgeTower/bridgetower-base-itm-mlm")
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

Each of the last six layers of the vision tower and of the text tower feeds one of six fusion layers. The vision tower reads no text, so
all its layers, and the projections of their outputs into the fusion layers, are computed once per image. The text tower and the fusion
layers run for every pair. Images are cropped to the centre square, as the processor does; captions are cut to 50 tokens,
as in the original's pretraining (BridgeTower, config.py `max_text_len`).

Shape letters: C captions of a batch, L tokens of its longest, T image tokens, D width of the fusion layers.
"""

from typing import Any

import torch
from PIL import Image
from transformers import BridgeTowerConfig, BridgeTowerForImageAndTextRetrieval
from transformers.models.bridgetower.image_processing_pil_bridgetower import BridgeTowerImageProcessorPil

from rerank.scorers.base import BatchedCrossEncoder, additive_mask
from rerank.scorers.checkpoint import (
    Checkpoint,
    check_heads,
    check_square,
    check_vocabulary,
    complete_weights,
    height_and_width,
    read_preprocessing,
    within_aspect,
)
from rerank.scorers.scorer import InputLimits
from rerank.scorers.supported import CROSS_ENCODER_KINDS

MAX_TOKENS = 50
_HEADS = {768: 12, 1024: 16}
_TEXT, _IMAGE = 0, 1  # rows of the table of token types


class BridgeTowerScorer(BatchedCrossEncoder):
    """Scores one image against many captions (a `PairScorer`)."""

    name = "bridgetower"

    @property
    def reads(self) -> InputLimits:
        """Images cropped to the vision tower's square, captions cut to 50 tokens."""
        text = self._model.config.text_config
        num_positions = text.max_position_embeddings - text.pad_token_id - 1  # RoBERTa's positions begin after that of padding
        return InputLimits(*height_and_width(self._model.config.vision_config.image_size), min(MAX_TOKENS, num_positions))

    @staticmethod
    def _read(model: str) -> Checkpoint:
        config, image_processor, tokenizer = read_preprocessing(model, BridgeTowerConfig, BridgeTowerImageProcessorPil)
        text = config.text_config  # the fusion layers take their heads from it too
        check_heads(model, "text_config.", text.hidden_size, text.num_attention_heads, _HEADS, "BridgeTower")
        _crop_to_size(image_processor, config.vision_config.image_size)
        check_square(model, config.vision_config.image_size, image_processor)
        check_vocabulary(model, tokenizer, text.vocab_size, lambda more: more == 0, "as many")
        loaded = complete_weights(model, BridgeTowerForImageAndTextRetrieval, config, CROSS_ENCODER_KINDS["bridgetower"].example)
        return Checkpoint(loaded, image_processor, tokenizer)

    @property
    def _num_layers_before(self) -> int:
        """Layers of either tower before the first fusion layer; the last of them feeds it."""
        return len(self._model.bridgetower.text_model.encoder.layer) - self._model.config.num_hidden_layers + 1

    def _framed(self, image: Image.Image) -> Image.Image:
        return within_aspect(image, self._checkpoint.image_processor)

    def _encode_image(self, pixels_1CHW: torch.Tensor) -> list[torch.Tensor]:
        """What the vision tower feeds each fusion layer, each of shape (1, T, D)."""
        towers = self._model.bridgetower
        tower = towers.vision_model.visual
        hidden_T1V = tower.forward_pre(pixels_1CHW)
        outputs = []
        for block in tower.transformer.resblocks:
            hidden_T1V = block(hidden_T1V)
            outputs.append(tower.forward_post(hidden_T1V))
        num_before = self._num_layers_before
        fed = outputs[num_before - 1 : num_before - 1 + self._model.config.num_hidden_layers]
        image_type = towers.token_type_embeddings.weight[_IMAGE]
        return [_projection(towers.cross_modal_image_transform, place)(output) + image_type for place, output in enumerate(fed)]

    def _match_states(self, encoded: list[torch.Tensor], ids_CL: torch.Tensor, mask_CL: torch.Tensor) -> torch.Tensor:
        """First tokens of text and image after the last fusion layer, shape (C, 2, D)."""
        towers = self._model.bridgetower
        text_layers, mask = towers.text_model.encoder.layer, additive_mask(mask_CL, self.device)
        num_before = self._num_layers_before
        text_CLD = towers.text_model.embeddings(input_ids=ids_CL)
        for layer in text_layers[:num_before]:
            text_CLD = layer(text_CLD, mask)
        text = towers.cross_modal_text_layernorm(self._bridged_text(text_CLD, 0))
        text, image = self._fused(text, towers.cross_modal_image_layernorm(encoded[0]), mask, 0)
        for place in range(1, len(encoded)):
            text_CLD = text_layers[num_before + place - 1](text_CLD, mask)
            text = towers.cross_modal_text_link_tower[place - 1](self._bridged_text(text_CLD, place), text, mask)
            image = towers.cross_modal_image_link_tower[place - 1](encoded[place], image, None)
            text, image = self._fused(text, image, mask, place)
        return torch.stack([text[:, 0], image[:, 0]], dim=1)

    def _fused(
        self, text_CLD: torch.Tensor, image: torch.Tensor, mask: torch.Tensor | None, place: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text and image after fusion layer `place`, shapes (C, L, D) and (C, T, D); the first is given the image in one row, (1, T, D)."""
        towers = self._model.bridgetower
        fused_text_CLD = towers.cross_modal_text_layers[place](text_CLD, image, attention_mask=mask)[0]
        image_CTD = image.expand(len(text_CLD), -1, -1)
        return fused_text_CLD, towers.cross_modal_image_layers[place](image_CTD, text_CLD, encoder_attention_mask=mask)[0]

    def _bridged_text(self, text_CLD: torch.Tensor, place: int) -> torch.Tensor:
        """What the text tower feeds fusion layer `place`, shape (C, L, D)."""
        towers = self._model.bridgetower
        return _projection(towers.cross_modal_text_transform, place)(text_CLD) + towers.token_type_embeddings.weight[_TEXT]

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        towers = self._model.bridgetower
        pooled = [towers.cross_modal_text_pooler(states[:, :1]), towers.cross_modal_image_pooler(states[:, 1:])]
        return self._model.itm_score(torch.cat(pooled, dim=-1))


def _projection(transforms: torch.nn.Module, place: int) -> torch.nn.Module:
    """The projection of a tower's output into fusion layer `place`: one for all, or one for each."""
    return transforms[place] if isinstance(transforms, torch.nn.ModuleList) else transforms


def _crop_to_size(image_processor: Any, image_size: int) -> None:
    """Crop to `size` where the files name no crop, as transformers 4 did: transformers 5 crops to 288 then, or fails at null.

    bridgetower-large and its fine-tuned versions take 294 pixels, without a `crop_size` or with null.
    """
    edge = image_processor.crop_size and image_processor.crop_size["shortest_edge"]
    if edge != image_size and image_processor.size["shortest_edge"] == image_size:
        image_processor.crop_size = image_processor.size

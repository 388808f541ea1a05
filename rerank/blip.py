"""BLIP as a judge of (image, caption) pairs, over transformers' BlipForImageTextRetrieval.

    scorer = BlipScorer.load("Salesforce/blip-itm-base-coco")
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

The picture goes through the vision tower once; its captions, in batches, through the text tower with cross-attention to it.
The batch holds the image's features once (transformers broadcasts them), so that each layer's keys and values of the
image are computed once per batch instead of once per caption. Scores equal transformers' own forward, pair by pair, to 1e-5.

Shape letters: N captions, C captions of a batch, T image tokens, D width of the text tower, V width of the vision tower.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from rerank.blip_checkpoint import BlipCheckpoint, load_blip
from rerank.blip_text import MAX_TOKENS, CaptionBatch, caption_batches, clean_caption, token_ids
from rerank.reads import Reads
from rerank.settings import ScorerSettings

_MATCH, _NO_MATCH = 1, 0  # columns of itm_score


@dataclass(frozen=True)
class BlipSettings(ScorerSettings):
    """The defaults are the original BLIP's evaluation, in float32. On the demo neither score kind ranks better (paired intervals hold 0).

    Attributes:
        enc_token: put [ENC] in place of [CLS], as the original does and transformers does not; a model whose vocabulary has
            no [ENC] is scored without.
        clean_captions: the original's caption cleaning.
        max_tokens: longer captions are cut to this many tokens.
    """

    enc_token: bool = True
    clean_captions: bool = True
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        """Raises ValueError for a value that is none of the above."""
        super().__post_init__()
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens: expected at least 2; found {self.max_tokens}.")

    @classmethod
    def of(cls, settings: ScorerSettings) -> "BlipSettings":
        """These settings, with the defaults for what only BLIP has."""
        return settings if isinstance(settings, cls) else cls(settings.score_kind, settings.precision, settings.chunk_size)


class BlipScorer:
    """Scores one image against many captions (a `PairScorer`)."""

    name = "blip"

    def __init__(
        self, checkpoint: BlipCheckpoint, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None
    ) -> None:
        """Moves the checkpoint's model to `device`, by default a GPU if there is one."""
        self.settings = BlipSettings.of(settings or BlipSettings())
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._checkpoint = checkpoint
        self._model = checkpoint.model.to(self.device)
        self._max_tokens = min(self.settings.max_tokens, checkpoint.model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, model: str, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None) -> "BlipScorer":
        """The scorer of a folder or hub id.

        Raises:
            UserError: the checkpoint is incomplete or contradicts itself (see `load_blip`).
        """
        return cls(load_blip(model), device=device, settings=settings)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, config, processors and the settings that change scores beyond float noise."""
        return hashlib.sha256(f"{self.name} {self.settings.identity()} {self._checkpoint.digest()}".encode()).hexdigest()

    @property
    def reads(self) -> Reads:
        """Pictures squashed to the vision tower's square, captions cut to `max_tokens`."""
        size = self._checkpoint.model.config.vision_config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return Reads(height, width, self._max_tokens)

    @property
    def enc_token_id(self) -> int | None:
        """The id that takes the first token's place, or None where none does."""
        return self._checkpoint.enc_token_id if self.settings.enc_token else None

    @torch.inference_mode()
    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """One score per caption, float32 of shape (N,); higher = better match.

        Captions that read alike to the model (after cleaning) are scored once and get the very same number.
        """
        if not captions:
            return np.empty(0, dtype=np.float32)
        texts = [clean_caption(caption) for caption in captions] if self.settings.clean_captions else list(captions)
        ids = token_ids(self._checkpoint.tokenizer, texts, enc_token_id=self.enc_token_id, max_tokens=self._max_tokens)
        distinct = {caption: place for place, caption in enumerate(dict.fromkeys(ids))}
        scores = self._score_distinct(self._image_features(image), list(distinct))
        return scores[[distinct[caption] for caption in ids]]

    def _image_features(self, image: Image.Image) -> torch.Tensor:
        """Features of the image's tokens, shape (1, T, V)."""
        pixels = self._checkpoint.image_processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"].to(self.device)
        with self._autocast():
            return self._model.vision_model(pixel_values=pixels).last_hidden_state

    def _score_distinct(self, image_1TV: torch.Tensor, ids: list[tuple[int, ...]]) -> np.ndarray:
        scores_N = np.empty(len(ids), dtype=np.float32)
        for batch in caption_batches(ids, self.settings.chunk_size, self._checkpoint.tokenizer.pad_token_id):
            scores_N[batch.positions_C] = self._score_batch(image_1TV, batch).cpu().numpy()
        return scores_N

    def _score_batch(self, image_1TV: torch.Tensor, batch: CaptionBatch) -> torch.Tensor:
        """float32 scores, shape (C,)."""
        with self._autocast():
            hidden_CLD = self._model.text_encoder(
                input_ids=batch.input_ids_CL.to(self.device),
                attention_mask=batch.attention_mask_CL.to(self.device),
                encoder_hidden_states=image_1TV,
            ).last_hidden_state
        logits_C2 = self._model.itm_head(hidden_CLD[:, 0].float())
        match_C = logits_C2[:, _MATCH]
        return match_C if self.settings.score_kind == "match_logit" else match_C - logits_C2[:, _NO_MATCH]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16")

"""BLIP as a judge of (image, caption) pairs, over the weights of transformers' BlipForImageTextRetrieval.

    scorer = BlipScorer.load("Salesforce/blip-itm-base-coco")
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

The picture goes through the vision tower once, and once into each layer's keys and values of the cross-attention; its captions
share them (rerank/blip_forward.py). Scores equal transformers' own forward, pair by pair, to 1e-5.

Shape letters: N captions, C captions computed together.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from rerank.blip_checkpoint import BlipCheckpoint, load_blip
from rerank.blip_forward import BlipForward
from rerank.blip_text import MAX_TOKENS, clean_caption, packed_captions, token_ids
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
        half = self.settings.precision == "bfloat16"
        self._digest = checkpoint.digest() if half else None  # of the weights as they are kept, before they are converted
        self._forward = BlipForward(checkpoint.model.to(self.device), torch.bfloat16 if half else torch.float32)
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
        return hashlib.sha256(f"{self.name} {self.settings.identity()} {self._digest or self._checkpoint.digest()}".encode()).hexdigest()

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
        scores = self._score_distinct(image, list(distinct))
        return scores[[distinct[caption] for caption in ids]]

    def _score_distinct(self, picture: Image.Image, ids: list[tuple[int, ...]]) -> np.ndarray:
        """One score per caption, float32."""
        pixels = self._checkpoint.image_processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        image = self._forward.image_states(pixels.to(self.device))
        places, scores = [], []
        for captions in packed_captions(ids, self.settings.chunk_size, self.device):
            logits_C2 = self._forward.match_logits(image, captions)
            match_C = logits_C2[:, _MATCH]
            scores.append(match_C if self.settings.score_kind == "match_logit" else match_C - logits_C2[:, _NO_MATCH])
            places.append(captions.places_C)
        scores_N = np.empty(len(ids), dtype=np.float32)
        scores_N[np.concatenate(places)] = torch.cat(scores).cpu().numpy()  # one wait for the device per image
        return scores_N

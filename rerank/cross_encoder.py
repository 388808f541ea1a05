"""What the cross-encoders of transformers have in common: captions in batches beside one encoded picture, a head in float32.

A scorer of a kind derives from `CrossEncoder` and says how its checkpoint is read, what of a picture is computed once, and
how a batch of captions is judged beside it; it reads a picture and a caption as its original does.

Shape letters: N captions, C captions of a batch, L its longest caption in tokens, K outputs of the head, ... of the model's own.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image

from rerank.blip_text import token_ids
from rerank.caption_batches import caption_batches
from rerank.checkpoint_reading import Checkpoint
from rerank.reads import Reads
from rerank.settings import ScorerSettings

_MATCH, _NO_MATCH = 1, 0  # columns of a head with two outputs


class CrossEncoder(ABC):
    """Scores one image against many captions (a `PairScorer`)."""

    name: ClassVar[str]

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None) -> None:
        """Moves the checkpoint's model to `device`, by default a GPU if there is one."""
        asked = settings or ScorerSettings()  # of another kind's own settings only those that every kind has count
        self.settings = ScorerSettings(**{field.name: getattr(asked, field.name) for field in fields(ScorerSettings)})
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._checkpoint = checkpoint
        self._model = checkpoint.model.to(self.device)

    @classmethod
    def load(cls, model: str, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None) -> Self:
        """The scorer of a folder or hub id.

        Raises:
            UserError: the checkpoint is incomplete or contradicts itself.
        """
        return cls(cls._read(model), device=device, settings=settings)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, config, processors, reach and the settings that change scores beyond float noise."""
        parts = f"{self.name} {self.settings.identity()} {self.reads} {self._checkpoint.digest()}"
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    @abstractmethod
    def reads(self) -> Reads:
        """What of a picture and of a caption it sees."""

    @torch.inference_mode()
    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """One score per caption, float32 of shape (N,); higher = better match.

        Captions that read alike to the model are scored once and get the very same number.
        """
        if not captions:
            return np.empty(0, dtype=np.float32)
        ids = self._token_ids(captions)
        distinct = {caption: place for place, caption in enumerate(dict.fromkeys(ids))}
        scores = self._score_distinct(image.convert("RGB"), list(distinct))
        return scores[[distinct[caption] for caption in ids]]

    @classmethod
    @abstractmethod
    def _read(cls, model: str) -> Checkpoint:
        """The checkpoint in a folder or under a hub id, complete and consistent; else a UserError."""

    @property
    @abstractmethod
    def _num_tokens(self) -> int:
        """Rows of the model's table of words."""

    @abstractmethod
    def _encode_image(self, image: Image.Image) -> Any:
        """All that depends on the picture alone (RGB), computed once for all its captions."""

    @abstractmethod
    def _judge(self, encoded: Any, ids_CL: torch.Tensor, mask_CL: torch.Tensor) -> torch.Tensor:
        """What the matching head reads of each pair, shape (C, ...)."""

    @abstractmethod
    def _logits(self, judged: torch.Tensor) -> torch.Tensor:
        """The matching head's outputs, shape (C, K), K 1 or 2; given float32, outside autocast."""

    def _cleaned(self, caption: str) -> str:
        """The caption as the original cleans it before the tokenizer; most leave it alone."""
        return caption

    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids, cut to the reach; a token the model has no row for (one added for generation, "<image>") reads as unknown."""
        tokenizer = self._checkpoint.tokenizer
        texts = [self._cleaned(caption) for caption in captions]
        ids = token_ids(tokenizer, texts, enc_token_id=None, max_tokens=self.reads.max_tokens)
        return [tuple(token if token < self._num_tokens else tokenizer.unk_token_id for token in caption) for caption in ids]

    def _score_distinct(self, image: Image.Image, ids: list[tuple[int, ...]]) -> np.ndarray:
        scores_N = np.empty(len(ids), dtype=np.float32)
        with self._autocast():
            encoded = self._encode_image(image)
        for batch in caption_batches(ids, self.settings.chunk_size, self._checkpoint.tokenizer.pad_token_id):
            with self._autocast():
                judged = self._judge(encoded, batch.input_ids_CL.to(self.device), batch.attention_mask_CL.to(self.device))
            scores_N[batch.positions_C] = self._score_of(self._logits(judged.float())).cpu().numpy()
        return scores_N

    def _score_of(self, logits_CK: torch.Tensor) -> torch.Tensor:
        """float32 scores, shape (C,)."""
        if logits_CK.shape[1] == 1:
            return logits_CK[:, 0]
        match_C = logits_CK[:, _MATCH]
        return match_C if self.settings.score_kind == "match_logit" else match_C - logits_CK[:, _NO_MATCH]

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """The picture as the model's image processor makes it, float32, shape (1, 3, height, width)."""
        pixels: torch.Tensor = self._checkpoint.image_processor(images=image, return_tensors="pt")["pixel_values"]
        return pixels.to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16")


def additive_mask(mask_CL: torch.Tensor) -> torch.Tensor | None:
    """What is added to attention logits so that padding is not attended to, float32 of shape (C, 1, 1, L); None where there is none.

    Args:
        mask_CL: 1 for tokens and 0 for padding; every row has a token, so that no softmax is over nothing.
    """
    if bool(mask_CL.all()):
        return None
    return torch.zeros(mask_CL.shape, device=mask_CL.device).masked_fill(mask_CL == 0, float("-inf"))[:, None, None, :]

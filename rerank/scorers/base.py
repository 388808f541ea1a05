"""The base classes of the cross-encoders: loading, fingerprint, batches of captions; captions of the same token ids are scored once.

A scorer derives from `CrossEncoder` and implements how its checkpoint, images and captions are read; or from `BatchedCrossEncoder`, which
encodes an image once and scores its captions in batches, with a head in float32. Each prepares images and captions as its original does.

Shape letters: N captions, C captions of a batch, L its longest caption in tokens, K outputs of the head, ... dimensions of the model.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image

from rerank.scorers.scorer import InputLimits, ScorerSettings, match_scores


class CrossEncoder(ABC):
    """Scores one image against many captions (a `PairScorer`).

    Attributes:
        fixed: choices of the original's evaluation that change scores, for the fingerprint.
        captions_at_once: captions of one image that go through the text tower together; changes scores by float noise only.
    """

    name: ClassVar[str]
    fixed: ClassVar[Mapping[str, object]] = {}
    captions_at_once = 64

    def __init__(self, checkpoint: Any, *, device: torch.device | str | None = None, settings: ScorerSettings = ScorerSettings()) -> None:
        """Moves the checkpoint's model to `device`, by default a GPU if there is one.

        Args:
            checkpoint: as `_read` gives it: a model, its image processor and tokenizer, and a `digest`.
        """
        self.settings = settings
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._checkpoint = checkpoint
        self._model = checkpoint.model.to(self.device)

    @classmethod
    def load(cls, model: str, *, device: torch.device | str | None = None, settings: ScorerSettings = ScorerSettings()) -> Self:
        """The scorer of a folder or hub id.

        Raises:
            UserError: the checkpoint is incomplete or contradicts itself.
        """
        return cls(cls._read(model), device=device, settings=settings)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, config, processors and the settings that change scores beyond float noise."""
        return hashlib.sha256(f"{self.name} {self.settings.identity(**self.fixed)} {self._checkpoint.digest()}".encode()).hexdigest()

    @property
    @abstractmethod
    def reads(self) -> InputLimits:
        """How much of an image and of a caption it reads."""

    @torch.inference_mode()
    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """One score per caption, float32 of shape (N,); higher = better match.

        Captions of the same token ids (after cleaning) are scored once and get the same score.
        """
        if not captions:
            return np.empty(0, dtype=np.float32)
        ids = self._token_ids(captions)
        distinct = {caption: place for place, caption in enumerate(dict.fromkeys(ids))}
        scores = self._score_distinct(image.convert("RGB"), list(distinct))
        return scores[[distinct[caption] for caption in ids]]

    @staticmethod
    @abstractmethod
    def _read(model: str) -> Any:
        """The checkpoint in a folder or under a hub id, complete and consistent; else a UserError."""

    @abstractmethod
    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each caption, cut to `reads.max_tokens`."""

    @abstractmethod
    def _score_distinct(self, image: Image.Image, ids: list[tuple[int, ...]]) -> np.ndarray:
        """One score per caption, float32; `image` is RGB."""

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """The pixel values of an image by the model's image processor, float32, shape (1, 3, height, width)."""
        pixels: torch.Tensor = self._checkpoint.image_processor(images=image, return_tensors="pt")["pixel_values"]
        return pixels.to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16")


class BatchedCrossEncoder(CrossEncoder):
    """A cross-encoder that encodes an image once and scores its captions in padded batches."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, config, processors, input limits and the settings that change scores beyond float noise."""
        parts = f"{self.name} {self.settings.identity(**self.fixed)} {self.reads} {self._checkpoint.digest()}"
        return hashlib.sha256(parts.encode()).hexdigest()

    @abstractmethod
    def _encode_image(self, image: Image.Image) -> Any:
        """All that depends on the image alone (RGB), computed once for all its captions."""

    @abstractmethod
    def _match_states(self, encoded: Any, ids_CL: torch.Tensor, mask_CL: torch.Tensor) -> torch.Tensor:
        """The states of each pair that the matching head reads, shape (C, ...)."""

    @abstractmethod
    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """The matching head's outputs, shape (C, K), K 1 or 2; given float32, outside autocast."""

    def _cleaned(self, caption: str) -> str:
        """The caption as the original cleans it before the tokenizer; by default unchanged."""
        return caption

    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids, cut to `reads.max_tokens`; a token without a row in the model ("<image>", added for generation) becomes unknown."""
        tokenizer, num_tokens = self._checkpoint.tokenizer, self._model.get_input_embeddings().num_embeddings
        texts = [self._cleaned(caption) for caption in captions]
        ids = token_ids(tokenizer, texts, self.reads.max_tokens)
        return [tuple(token if token < num_tokens else tokenizer.unk_token_id for token in caption) for caption in ids]

    def _score_distinct(self, image: Image.Image, ids: list[tuple[int, ...]]) -> np.ndarray:
        scores_N = np.empty(len(ids), dtype=np.float32)
        with self._autocast():
            encoded = self._encode_image(image)
        for positions_C, ids_CL, mask_CL in caption_batches(ids, self.captions_at_once, self._checkpoint.tokenizer.pad_token_id):
            with self._autocast():
                states = self._match_states(encoded, ids_CL.to(self.device), mask_CL.to(self.device))
            scores_N[positions_C] = match_scores(self._logits(states.float()), self.settings.score_kind).cpu().numpy()
        return scores_N


def additive_mask(mask_CL: torch.Tensor) -> torch.Tensor | None:
    """The mask to add to attention logits so that padding is not attended to, float32 of shape (C, 1, 1, L); None without padding.

    Args:
        mask_CL: 1 for tokens and 0 for padding; every row has a token.
    """
    if bool(mask_CL.all()):
        return None
    return torch.zeros(mask_CL.shape, device=mask_CL.device).masked_fill(mask_CL == 0, float("-inf"))[:, None, None, :]


def token_ids(tokenizer: Any, captions: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of each caption, cut to `max_tokens`."""
    encoded = tokenizer(list(captions), truncation=True, max_length=max_tokens, padding=False, return_token_type_ids=False)
    return [tuple(ids) for ids in encoded["input_ids"]]


def positions_by_length(ids: Sequence[tuple[int, ...]], chunk_size: int) -> Iterator[list[int]]:
    """Positions of all captions, `chunk_size` at a time, shortest first, so that captions of similar length share a batch.

    The order depends on lengths and positions alone: the same captions always give the same batches.
    """
    by_length = sorted(range(len(ids)), key=lambda position: len(ids[position]))
    for start in range(0, len(ids), chunk_size):
        yield by_length[start : start + chunk_size]


def caption_batches(
    ids: Sequence[tuple[int, ...]], chunk_size: int, pad_token_id: int
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """(positions_C, input_ids_CL, attention_mask_CL) of all captions in batches of `chunk_size`, grouped by `positions_by_length`.

    All int64; which of the captions these are, padded to the longest among them, and 1 for tokens and 0 for padding.
    """
    for positions in positions_by_length(ids, chunk_size):
        longest = max(len(ids[position]) for position in positions)
        rows = [list(ids[position]) + [pad_token_id] * (longest - len(ids[position])) for position in positions]
        masks = [[1] * len(ids[position]) + [0] * (longest - len(ids[position])) for position in positions]
        yield np.asarray(positions), torch.tensor(rows), torch.tensor(masks)

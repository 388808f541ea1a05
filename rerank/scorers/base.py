"""The base classes of the cross-encoders: loading, fingerprint, batches of captions; captions of the same token ids are scored once.

A scorer derives from `CrossEncoder` and implements how its checkpoint, images and captions are read; or from `BatchedCrossEncoder`, which
encodes an image once and scores its captions in batches, with a head in float32. Each prepares images and captions as its original does.

Shape letters: N captions, C captions of a batch, L its longest caption in tokens, K outputs of the head, ... dimensions of the model.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image

from eval.encoder.inputs import PictureBytes
from eval.processes import brought, sent
from rerank.scorers.memory import fitting_memory, halving
from rerank.scorers.scorer import InputLimits, ScorerSettings, match_scores

CACHED_TEXTS = 1 << 18  # whose token ids are kept: some 100 MB


class CrossEncoder(ABC):
    """Scores one image against many captions (a `rerank.scorers.scorer.StagedScorer`).

    Attributes:
        fixed: choices of the original's evaluation that change scores, for the fingerprint.
        captions_at_once: captions of one image that go through the text tower together; changes scores by float noise only. On a GPU what
            its memory has room for takes its place (rerank/scorers/memory.py).
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
        self._known_ids: dict[str, tuple[int, ...]] = {}
        self._is_fitted = self.device.type != "cuda"

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

    @property
    def num_ahead(self) -> int:
        """A device computes an image while the host takes the scores of the one before."""
        return 0 if self.device.type == "cpu" else 1

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """One score per caption, float32 of shape (N,); higher = better match.

        Captions of the same token ids (after cleaning) are scored once and get the same score.
        """
        if not captions:
            return np.empty(0, dtype=np.float32)
        return self.begin(self.prepare(image), captions)()

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """The image as the image processor resizes it: bytes, or pixel values (see `eval.encoder.inputs.PictureBytes.read`)."""
        return self._pictures.read(self._framed(image.convert("RGB")))

    @torch.inference_mode()
    def begin(self, prepared: torch.Tensor, captions: Sequence[str]) -> Callable[[], np.ndarray]:
        """Begin to score an image as `prepare` gives it; what is returned waits for the scores, as of `score`."""
        ids = self._ids_of(captions)
        distinct = {caption: place for place, caption in enumerate(dict.fromkeys(ids))}
        with self._autocast():
            encoded = self._encode_image(self._pictures.values(sent(prepared, self.device)[None]))
        order, scores_D = self._in_chunks(encoded, list(distinct))
        arrived = brought(scores_D)

        def wait() -> np.ndarray:
            scores_N = np.empty(len(order), dtype=np.float32)
            scores_N[order] = arrived().numpy()
            return scores_N[[distinct[caption] for caption in ids]]

        return wait

    @staticmethod
    @abstractmethod
    def _read(model: str) -> Any:
        """The checkpoint in a folder or under a hub id, complete and consistent; else a UserError."""

    @abstractmethod
    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each caption, cut to `reads.max_tokens`."""

    @abstractmethod
    def _encode_image(self, pixels_1CHW: torch.Tensor) -> Any:
        """All that depends on the image alone, computed once for all its captions; of its pixel values, float32."""

    @abstractmethod
    def _scores(self, encoded: Any, ids: list[tuple[int, ...]]) -> torch.Tensor:
        """Scores of captions that are computed together, float32 of shape (C,), on the device."""

    def _framed(self, image: Image.Image) -> Image.Image:
        """The image (RGB) as the image processor can take it; by default unchanged."""
        return image

    @cached_property
    def _pictures(self) -> PictureBytes:
        return PictureBytes(self._checkpoint.image_processor)

    def _ids_of(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """`_token_ids`, of which those of a caption that several images are scored with are made once."""
        if len(self._known_ids) > CACHED_TEXTS:
            self._known_ids.clear()
        if missing := [caption for caption in dict.fromkeys(captions) if caption not in self._known_ids]:
            self._known_ids.update(zip(missing, self._token_ids(missing), strict=True))
        return [self._known_ids[caption] for caption in captions]

    def _in_chunks(self, encoded: Any, ids: list[tuple[int, ...]]) -> tuple[list[int], torch.Tensor]:
        """Positions of the captions, shortest first, and their scores in that order, float32 of shape (N,), on the device.

        Where a GPU's memory does not suffice for so many captions at once, half as many are taken from then on.
        """
        if not self._is_fitted:
            self._is_fitted = True
            self.captions_at_once = fitting_memory(lambda longest: self._scores(encoded, longest), self.reads.max_tokens, self.device)
        order, scores, start = by_length(ids), list[torch.Tensor](), 0
        while start < len(order):
            chunk = order[start : start + self.captions_at_once]
            with halving(len(chunk), self.name) as halved:
                scores.append(self._scores(encoded, [ids[position] for position in chunk]))
                start += len(chunk)
            self.captions_at_once = halved.size or self.captions_at_once
        return order, torch.cat(scores)

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
    def _match_states(self, encoded: Any, ids_CL: torch.Tensor, mask_CL: torch.Tensor) -> torch.Tensor:
        """The states of each pair that the matching head reads, shape (C, ...); the mask lies in the host's memory."""

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

    def _scores(self, encoded: Any, ids: list[tuple[int, ...]]) -> torch.Tensor:
        ids_CL, mask_CL = padded(ids, self._checkpoint.tokenizer.pad_token_id)
        with self._autocast():
            states = self._match_states(encoded, sent(ids_CL, self.device), mask_CL)
        return match_scores(self._logits(states.float()), self.settings.score_kind)


def additive_mask(mask_CL: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """The mask to add to attention logits so that padding is not attended to, float32 of shape (C, 1, 1, L); None without padding.

    Args:
        mask_CL: 1 for tokens and 0 for padding; every row has a token; in the host's memory, where its truth is known without a wait.
        device: where the mask is to lie.
    """
    if bool(mask_CL.all()):
        return None
    return sent(torch.zeros(mask_CL.shape).masked_fill(mask_CL == 0, float("-inf"))[:, None, None, :], device)


def token_ids(tokenizer: Any, captions: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of each caption, cut to `max_tokens`."""
    encoded = tokenizer(list(captions), truncation=True, max_length=max_tokens, padding=False, return_token_type_ids=False)
    return [tuple(ids) for ids in encoded["input_ids"]]


def by_length(ids: Sequence[tuple[int, ...]]) -> list[int]:
    """Positions of all captions, shortest first, so that captions of similar length are computed together.

    The order depends on lengths and positions alone: the same captions always give the same chunks.
    """
    return sorted(range(len(ids)), key=lambda position: len(ids[position]))


def padded(ids: Sequence[tuple[int, ...]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids_CL, attention_mask_CL) of captions, int64: padded to the longest among them, and 1 for tokens and 0 for padding."""
    longest = max(map(len, ids))
    rows = [list(caption) + [pad_token_id] * (longest - len(caption)) for caption in ids]
    return torch.tensor(rows), torch.tensor([[1] * len(caption) + [0] * (longest - len(caption)) for caption in ids])

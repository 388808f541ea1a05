"""Vision-language models as cross-encoders of (image, caption) pairs: sentence-transformers CrossEncoders that take images.

    scorer = VlmScorer.load("Qwen/Qwen3-VL-Reranker-2B")          # pip install -e '.[rerank-vlm]'
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

The score is the raw logit: for a generative reranker the logit of "yes" less that of "no" at the end of its prompt, for a classifier its
output. The library's default probability is its sigmoid, which saturates at 1. The chat template and the prompt are the model's own.
Every pair goes through the whole model: the captions of an image share no computation.

Shape letters: N captions, D distinct ones.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from rerank.scorers.scorer import InputLimits, ScorerSettings, match_scores
from rerank.scorers.vlm.checkpoint import digest, load_cross_encoder

PAIRS_AT_ONCE = 8  # each with its image: the 64 of other kinds would not fit next to such a model on most GPUs


class VlmScorer:
    """Scores one image against many captions (a `rerank.scorers.scorer.StagedScorer`)."""

    name = "vlm"
    num_ahead = 0

    def __init__(self, encoder: Any, settings: ScorerSettings) -> None:
        """Takes a CrossEncoder as `load_cross_encoder` gives it."""
        self._encoder, self.settings = encoder, settings

    @classmethod
    def load(cls, model: str, *, device: torch.device | str | None = None, settings: ScorerSettings = ScorerSettings()) -> "VlmScorer":
        """The scorer of a folder or hub id.

        Raises:
            UserError: sentence-transformers is missing, or the checkpoint cannot score pairs (see `load_cross_encoder`).
        """
        dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(load_cross_encoder(model, place, dtype), settings)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, configs, processor, prompts and the settings that change scores beyond float noise."""
        identity = self.settings.identity(query="caption", prompt=None)
        return hashlib.sha256(f"{self.name} {identity} {digest(self._encoder)}".encode()).hexdigest()

    @property
    def reads(self) -> InputLimits:
        """Images as the model's processor takes them, captions up to the context length, which prompt and image share."""
        text = self._encoder.model.config.get_text_config()
        positions = int(getattr(text, "max_position_embeddings", None) or 2**31)
        return InputLimits(0, 0, min(int(self._encoder.max_seq_length or positions), positions))

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """One score per caption, float32 of shape (N,); higher = better match. Equal captions are scored once."""
        return self.begin(self.prepare(image), captions)() if captions else np.empty(0, dtype=np.float32)

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image in RGB: what the model reads of it is made with the prompt."""
        return image.convert("RGB")

    @torch.inference_mode()
    def begin(self, prepared: Image.Image, captions: Sequence[str]) -> Callable[[], np.ndarray]:
        """The scores, computed here: the library's `predict` waits for them."""
        distinct = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
        pairs = [(caption, prepared) for caption in distinct]  # the caption is the query, as these rerankers were trained
        logits = self._encoder.predict(pairs, batch_size=PAIRS_AT_ONCE, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        logits_DK = np.asarray(logits, dtype=np.float32).reshape(len(distinct), -1)
        scores_N = match_scores(logits_DK, self.settings.score_kind)[[distinct[caption] for caption in captions]]
        return lambda: scores_N

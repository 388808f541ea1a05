"""BLIP as a cross-encoder of (image, caption) pairs, with the weights of transformers' BlipForImageTextRetrieval.

    scorer = BlipScorer.load("Salesforce/blip-itm-base-coco")
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

An image goes through the vision tower once, and once into the keys and values of each layer's cross-attention; its captions share
them (rerank/scorers/blip/forward.py). Scores equal transformers' own forward, pair by pair, to 1e-5.

Shape letters: N captions, C captions computed together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from rerank.scorers.base import CrossEncoder, token_ids
from rerank.scorers.blip.checkpoint import BlipCheckpoint, load_blip
from rerank.scorers.blip.forward import BlipForward
from rerank.scorers.blip.text import MAX_TOKENS, clean_caption, packed_captions
from rerank.scorers.checkpoint import height_and_width
from rerank.scorers.scorer import InputLimits, ScorerSettings, match_scores


@dataclass(frozen=True)
class BlipSettings(ScorerSettings):
    """The defaults are the original BLIP's evaluation, in float32. On the demo both score kinds rank equally (paired intervals include 0).

    Attributes:
        enc_token: put [ENC] in place of [CLS], as the original does and transformers does not; without effect where the
            vocabulary has no [ENC].
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


class BlipScorer(CrossEncoder[BlipSettings]):
    """Scores one image against many captions (a `PairScorer`)."""

    name = "blip"
    settings_class = BlipSettings

    def __init__(
        self, checkpoint: BlipCheckpoint, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None
    ) -> None:
        """Moves the checkpoint's model to `device`, by default a GPU if there is one; in bfloat16 its weights are converted in place."""
        super().__init__(checkpoint, device=device, settings=settings)
        half = self.settings.precision == "bfloat16"
        if half:
            _ = self.fingerprint  # cached: the hash of the weights as read, before they are converted
        self._forward = BlipForward(self._model, torch.bfloat16 if half else torch.float32)
        self._max_tokens = min(self.settings.max_tokens, checkpoint.model.config.text_config.max_position_embeddings)

    @property
    def reads(self) -> InputLimits:
        """Images resized to the vision tower's square, captions cut to `max_tokens`."""
        return InputLimits(*height_and_width(self._model.config.vision_config.image_size), self._max_tokens)

    @property
    def enc_token_id(self) -> int | None:
        """The id that replaces the first token; None: it is not replaced."""
        return self._checkpoint.enc_token_id if self.settings.enc_token else None

    @classmethod
    def _read(cls, model: str) -> BlipCheckpoint:
        return load_blip(model)

    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        texts = [clean_caption(caption) for caption in captions] if self.settings.clean_captions else list(captions)
        return token_ids(self._checkpoint.tokenizer, texts, enc_token_id=self.enc_token_id, max_tokens=self._max_tokens)

    def _score_distinct(self, image: Image.Image, ids: list[tuple[int, ...]]) -> np.ndarray:
        states = self._forward.image_states(self._pixels(image))
        places, scores = [], []
        for captions in packed_captions(ids, self.settings.chunk_size, self.device):
            scores.append(match_scores(self._forward.match_logits(states, captions), self.settings.score_kind))
            places.append(captions.places_C)
        scores_N = np.empty(len(ids), dtype=np.float32)
        scores_N[np.concatenate(places)] = torch.cat(scores).cpu().numpy()  # one synchronisation with the device per image
        return scores_N

"""BLIP as a cross-encoder of (image, caption) pairs, with the weights of transformers' BlipForImageTextRetrieval.

    scorer = BlipScorer.load("Salesforce/blip-itm-base-coco")
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

An image goes through the vision tower once, and once into the keys and values of each layer's cross-attention; its captions share
them (rerank/scorers/blip/forward.py). Scores equal transformers' own forward, pair by pair, to 1e-5.

Shape letters: C captions computed together.
"""

from collections.abc import Sequence

import torch

from rerank.scorers.base import CrossEncoder
from rerank.scorers.blip.checkpoint import MAX_TOKENS, BlipCheckpoint, load_blip
from rerank.scorers.blip.forward import BlipForward, ImageStates
from rerank.scorers.blip.text import PackedCaptions
from rerank.scorers.checkpoint import height_and_width
from rerank.scorers.scorer import InputLimits, ScorerSettings, match_scores


class BlipScorer(CrossEncoder):
    """Scores one image against many captions (a `PairScorer`)."""

    name = "blip"
    fixed = {"clean_captions": True, "enc_token": True, "max_tokens": MAX_TOKENS}
    _read = staticmethod(load_blip)

    def __init__(
        self, checkpoint: BlipCheckpoint, *, device: torch.device | str | None = None, settings: ScorerSettings = ScorerSettings()
    ) -> None:
        """Moves the checkpoint's model to `device`, by default a GPU if there is one; in bfloat16 its weights are converted in place."""
        super().__init__(checkpoint, device=device, settings=settings)
        half = self.settings.precision == "bfloat16"
        if half:
            _ = self.fingerprint  # cached: the hash of the weights as read, before they are converted
        self._forward = BlipForward(self._model, torch.bfloat16 if half else torch.float32)

    @property
    def reads(self) -> InputLimits:
        """Images resized to the vision tower's square, captions cut to 35 tokens."""
        return InputLimits(*height_and_width(self._model.config.vision_config.image_size), self._checkpoint.max_tokens)

    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        ids: list[tuple[int, ...]] = self._checkpoint.token_ids(captions)
        return ids

    def _encode_image(self, pixels_1CHW: torch.Tensor) -> ImageStates:
        return self._forward.image_states(pixels_1CHW)

    def _scores(self, encoded: ImageStates, ids: list[tuple[int, ...]]) -> torch.Tensor:
        captions = PackedCaptions.of(ids, self.device)
        return match_scores(self._forward.match_logits(encoded, captions), self.settings.score_kind)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=False)  # BlipForward converts what is to be converted
